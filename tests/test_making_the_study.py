"""`make study` does what is left and nothing else; a command that stands in for the tool writes its files."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

STUDY = Path(__file__).parents[1] / "docs" / "study"
COMMAND = """#!/usr/bin/env python3
import json, os, pathlib, re, sys, time
here, said = pathlib.Path(__file__).parent, sys.argv[1:]
with (here / "calls").open("a") as calls:
    print(*said, file=calls)
if os.environ.get("FAILS", "nothing") in " ".join(said):
    sys.exit(2)
if os.environ.get("WAITS", "nothing") in " ".join(said):
    time.sleep(60)
if said[0] == "data":
    sys.exit()
folder = pathlib.Path(said[said.index("--output") + 1])
folder.mkdir(parents=True, exist_ok=said[0] == "train")  # another run's folder is refused
if said[0] == "train":
    card = {"weights_sha256": os.environ["WEIGHTS"], "command": "fragile-neurons " + " ".join(said)}
    (folder / "card.json").write_text(json.dumps(card))
    sys.exit()
spec = pathlib.Path(said[said.index("--spec") + 1]).read_text()
found = (here / ("found-" + said[0])).read_text()
if "weights = " in spec:
    found = re.sub('weights_sha256 = "[^"]*"', 'weights_sha256 = "%s"' % os.environ["WEIGHTS"], found)
(folder / "spec.toml").write_text(spec + found)
(folder / "summary.json").write_text('{"folder": "%s"}' % folder)
"""
ANALYZE = """limit = 100
[[runs]]
model = "mnist-cnn"
data = "mnist"
[[runs]]
model = "resnet18"
weights = "trained/study/resnet18-mnist/weights.safetensors"
data = "mnist"
"""
EVALUATE = ANALYZE.partition('[[runs]]\nmodel = "resnet18')[0]
HARDEN = ANALYZE.replace("limit = 100\n", 'limit = 100\nrule = "proportional"\n')
ALL = {
    "data fetch mnist",
    "train --model resnet18 --data mnist --output trained/study/resnet18-mnist --threads 1",
    *("mnist-cnn-analyze-first", "mnist-cnn-evaluate", "mnist-cnn-harden-proportional-all"),
    *("resnet18-mnist-analyze-first", "resnet18-mnist-harden-proportional-all"),
}
OF_RESNET18 = {one for one in ALL if "resnet18" in one or "fetch" in one}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The study of two networks in a folder of its own."""
    here, bins = tmp_path / "docs" / "study", tmp_path / "bin"
    here.mkdir(parents=True)
    bins.mkdir()
    (bins / "fragile-neurons").write_text(COMMAND)
    (bins / "fragile-neurons").chmod(0o755)
    for command in ("analyze", "evaluate", "harden"):
        kept = min((STUDY / "runs").glob(f"*-{command}*/spec.toml"))
        found = kept.read_text().partition("[found]\n")[2]
        (bins / f"found-{command}").write_text(f"\n[found]\n{found}")
    for name, text in {"analyze": ANALYZE, "evaluate": EVALUATE, "harden": HARDEN}.items():
        (here / f"{name}.toml").write_text(text)
    (here / "train.txt").write_text("--model resnet18 --data mnist --output trained/study/resnet18-mnist\n")
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.setenv("PATH", str(bins), prepend=os.pathsep)
    monkeypatch.setenv("WEIGHTS", "a" * 64)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("study")
    places = {"HERE": here, "ROOT": tmp_path, "TRAINED": tmp_path / "trained/study"}
    for name, place in (places | {"RUNS": tmp_path / "runs/study"}).items():
        monkeypatch.setattr(module, name, place)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield module
    for number, handler in handlers.items():
        signal.signal(number, handler)


Made = Callable[..., tuple[set[str], str]]


@pytest.fixture
def made(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Make it once: the commands given, runs by their names, and what it ended with."""

    def make(*networks: str) -> tuple[set[str], str]:
        monkeypatch.setattr(sys, "argv", ["study.py", *networks])
        calls = tmp_path / "bin" / "calls"
        calls.write_text("")
        end = ""
        try:
            study.main()
        except SystemExit as error:
            end = str(error)
        given = [
            re.sub(r"^\w+ --spec .*/([^/]+)-\w{8}$", r"\1", line) for line in calls.read_text().splitlines()
        ]
        assert len(given) == len(set(given))
        return set(given), end

    return make


def test_a_second_time_does_nothing_and_a_new_machine_only_what_is_not_kept(
    made: Made, tmp_path: Path
) -> None:
    assert made() == (ALL, "")
    kept = tmp_path / "docs" / "study"
    summary = json.loads((kept / "runs" / "mnist-cnn-evaluate" / "summary.json").read_text())
    assert summary["folder"].startswith("runs/study/mnist-cnn-evaluate-")
    assert made() == (set(), "")
    for gone in ("runs", "trained"):
        (tmp_path / gone).rename(tmp_path / f"old-{gone}")
    assert made() == (set(), "")
    (kept / "runs" / "resnet18-mnist-analyze-first" / "spec.toml").unlink()
    (kept / "runs" / "mnist-cnn-evaluate" / "spec.toml").unlink()
    trains = {one for one in ALL if one.startswith(("train", "data"))}
    assert made() == ({*trains, "resnet18-mnist-analyze-first", "mnist-cnn-evaluate"}, "")


def test_a_changed_spec_is_run_again(made: Made, tmp_path: Path) -> None:
    made()
    lists = tmp_path / "docs" / "study" / "evaluate.toml"
    lists.write_text(lists.read_text().replace("100", "200"))
    assert made() == ({"data fetch mnist", "mnist-cnn-evaluate"}, "")
    assert made() == (set(), "")


def test_a_changed_training_is_made_again_and_its_runs(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    trainings = tmp_path / "docs/study/train.txt"
    trainings.write_text(trainings.read_text().replace("--data mnist", "--data mnist --epochs 9"))
    monkeypatch.setenv("WEIGHTS", "b" * 64)
    changed = {one.replace("--data mnist", "--data mnist --epochs 9") for one in OF_RESNET18}
    assert made() == (changed, "")
    assert made() == (set(), "")


def test_what_is_in_no_list_is_not_kept(made: Made, tmp_path: Path) -> None:
    made()
    (tmp_path / "docs/study/evaluate.toml").write_text(EVALUATE.replace("mnist-cnn", "mnist-cnn-robust"))
    runs = tmp_path / "docs/study/runs"
    before = {folder.name for folder in runs.iterdir()}
    assert made() == ({"data fetch mnist", "mnist-cnn-robust-evaluate"}, "")
    now = {folder.name for folder in runs.iterdir()}
    assert (before - now, now - before) == ({"mnist-cnn-evaluate"}, {"mnist-cnn-robust-evaluate"})


def test_an_older_training_on_this_machine_is_not_asked(made: Made, tmp_path: Path) -> None:
    made()
    card = tmp_path / "trained/study/resnet18-mnist/card.json"
    card.write_text(card.read_text().replace("a" * 64, "b" * 64))
    assert made() == (set(), "")


def test_of_weights_that_come_out_otherwise_all_runs_are_made_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    (tmp_path / "trained").rename(tmp_path / "old")
    (tmp_path / "docs/study/runs/resnet18-mnist-analyze-first/spec.toml").unlink()
    monkeypatch.setenv("WEIGHTS", "b" * 64)
    monkeypatch.setenv("FAILS", "harden")
    made()
    kept = {folder.name for folder in (tmp_path / "docs/study/runs").glob("resnet18*")}
    assert kept == {"resnet18-mnist-analyze-first"}
    monkeypatch.delenv("FAILS")
    assert made() == (OF_RESNET18 - {"resnet18-mnist-analyze-first"}, "")
    card = json.loads((tmp_path / "docs/study/cards/resnet18-mnist.json").read_text())
    assert card["weights_sha256"] == "b" * 64
    assert made() == (set(), "")


@pytest.mark.parametrize(
    ("fails", "begun", "left"),
    [
        ("mnist-cnn-evaluate", ALL, "mnist-cnn"),
        ("train", {one for one in ALL if not one.startswith("resnet18")}, "resnet18-mnist"),
    ],
)
def test_what_fails_does_not_keep_the_rest_from_being_done(
    made: Made, monkeypatch: pytest.MonkeyPatch, fails: str, begun: set[str], left: str
) -> None:
    monkeypatch.setenv("FAILS", fails)
    given, end = made()
    assert given == begun
    assert end.startswith(f"left: {left}\n")
    monkeypatch.delenv("FAILS")
    given, end = made()
    assert end == ""
    assert given == ALL - (begun - {one for one in begun if fails in one}) | {"data fetch mnist"}


def test_data_that_cannot_be_had_are_an_error_at_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "data")
    assert made() == ({"data fetch mnist"}, "error: mnist is not there, and nothing was begun")


def test_one_network_can_be_asked_for(made: Made) -> None:
    assert made("resnet18-mnist") == (OF_RESNET18, "")
    assert made("resnet") == (set(), "error: not of the study: resnet\n  allowed: mnist-cnn, resnet18-mnist")


def test_a_signal_stops_what_runs_and_begins_nothing_more(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAITS", "analyze")

    def end_soon() -> None:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("runs/study/*-analyze-first.log"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=end_soon)
    killer.start()
    given, end = made()
    killer.join()
    assert not any("harden" in one or "evaluate" in one for one in given)
    assert end.startswith("left: mnist-cnn, resnet18-mnist\n")
    monkeypatch.delenv("WAITS")
    assert made()[0] == ALL
