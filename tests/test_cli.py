"""The command: every mistake is one message with a fix and an exit code, and leaves nothing behind."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fragile_neurons import open_run
from fragile_neurons.cli import main
from fragile_neurons.cli.specs import specs_in
from fragile_neurons.models.loading import MODELS
from fragile_neurons.report import sentences
from fragile_neurons.runs.engines import local
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.spec import AnalyzeSpec, Spec
from fragile_neurons.runs.subject import Subject

SMALL = ["--limit", "20", "--neurons", "3", "--device", "cpu"]
SMALL_RUN = [*SMALL, "--epsilons", "0.1", "--batch-size", "4"]
UNITS = 23
COMMANDS = [
    "analyze",
    "evaluate",
    "harden",
    "plan",
    "resume",
    "status",
    "verify",
    "layers",
    "models",
    "train",
    "data list",
    "data fetch",
]


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """A run takes a thread per core that it may use; one is fastest for runs as small as these."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[os.getpid() % len(cores)]})
    yield
    os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `fragile-neurons` in this process, in an empty folder `work`."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fragile-neurons", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        shown = capsys.readouterr()
        return Outcome(code, plain(shown.out), plain(shown.err))

    return run


def plain(text: str) -> str:
    """Without the colours that some CI machines ask for."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def assert_refused(outcome: Outcome, *holds: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.err
    assert "\n  fix:     " in outcome.err
    if code == 2:
        assert "\n  given:   " in outcome.err
        assert "\n  allowed: " in outcome.err
    assert outcome.out == ""
    for part in holds:
        assert part in outcome.err


def assert_nothing_left() -> None:
    """The command ran in a folder that was empty."""
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def finished(command: Command, kept: Path) -> Path:
    """A finished run; computed once, so tests must not change it."""
    if not kept.exists():
        assert command("analyze", *SMALL_RUN, "--output", str(kept)).code == 0
    return kept


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the units that are computed in this process from here on."""
    ids: list[str] = []

    def watched(subject: Subject, unit: Unit, *given: Any) -> dict[str, Any]:
        ids.append(unit.id)
        return execute_unit(subject, unit, *given)

    monkeypatch.setattr(local, "execute_unit", watched)
    return ids


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> Path:
    """A run that was interrupted after two units."""
    folder = tmp_path / "unfinished"
    left = [2]

    def interrupted(subject: Subject, unit: Unit, *given: Any) -> dict[str, Any]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return execute_unit(subject, unit, *given)

    with monkeypatch.context() as patch:
        patch.setattr(local, "execute_unit", interrupted)
        outcome = command("analyze", *SMALL_RUN, "--output", str(folder))
    assert outcome.code == 130
    assert outcome.out == ""
    assert outcome.err.splitlines()[-2:] == [
        "interrupted",
        f"  finished units are kept, go on with: fragile-neurons resume {folder}",
    ]
    return folder


def same_neurons(one: Path, two: Path) -> bool:
    return (one / "neurons.csv").read_bytes() == (two / "neurons.csv").read_bytes()


# --- bad input


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("-0.1", ["given:   -0.1", "[0, 1]"]),
        ("8", ["given:   8", '"8/255"']),
        ("1.01", ["given:   1.01", "[0, 1]"]),
        ("nan", ["given:   nan", "a number in [0, 1]"]),
        ("inf", ["given:   inf", "a number in [0, 1]"]),
        ("-inf", ["given:   -inf", "a number in [0, 1]"]),
        ("0.1,,0.2", ["given:   an empty text", "separated by commas"]),
        ("0.1,", ["given:   an empty text", "separated by commas"]),
        ("0.1;0.2", ["given:   0.1;0.2", "separated by commas"]),
        ("0.2,51/255", ["given twice", "given:   0.2", "each budget once"]),
        ("0.1,0.05,0.10", ["given twice", "given:   0.1", "remove the duplicate"]),
    ],
)
def test_an_impossible_epsilon_is_refused(command: Command, text: str, holds: list[str]) -> None:
    assert_refused(command("analyze", *SMALL, f"--epsilons={text}"), *holds)
    assert_nothing_left()


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ("--limit 9", ["given:   9", "10 to 10000"]),
        ("--limit -5", ["given:   -5", "10 to 10000"]),
        ("--limit 10001", ["given:   10001", "10 to 10000"]),
        ("--limit 5001 --split val", ["given:   5001", "10 to 5000"]),
        ("--model nope", ["given:   nope", "mnist-cnn, mnist-cnn-robust", "fragile-neurons models"]),
        ("--data nope", ["given:   nope", "mnist", "fragile-neurons data list"]),
        ("--split nope", ["given:   nope", "train (55,000 images), val (5,000 images)", "--split"]),
        ("--layer nope", ["no such layer", "given:   nope", "first, all, or: conv1, conv2, fc1"]),
        ("--layer relu1", ["is executed", "given:   relu1", "first, all, or: conv1, conv2, fc1"]),
        ("--layer fc2", ["never a target", "given:   fc2", "first, all, or: conv1, conv2, fc1"]),
        ("--neurons conv1:32", ["given:   conv1:32", "conv1:0 to conv1:31", "conv1:3,conv1:17"]),
        ("--neurons conv2:0", ["given:   conv2:0", "conv1:0 to conv1:31"]),
        ("--neurons 0", ["given:   0", "conv1:0 to conv1:31"]),
        ("--neurons conv1", ["given:   conv1", "conv1:0 to conv1:31"]),
        ("--site norm", ["conv1 has no site norm", "given:   norm", "allowed: conv, act", "--site"]),
        ("--site pool", ["given:   pool", "'conv', 'norm' or 'act'"]),
        ("--mode nope", ["given:   nope", "'adaptive' or 'transfer'"]),
        ("--replace nope", ["given:   nope", "'zero' or 'mean'"]),
        ("--verdict-rule nope", ["given:   nope", "'tested' or 'below-mean'"]),
        ("--device tpu", ["given:   tpu", "auto, cpu, cuda", "--device cpu"]),
        ("--device cpu:x", ["given:   cpu:x", "auto, cpu, cuda"]),
        ("--tolerance wide", ["given:   wide", '"1pp" or "0.01"']),
        ("--tolerance 0pp", ["given:   0.0", "greater than 0"]),
        ("--tolerance nan", ["given:   nan"]),
        ("--tolerance 100pp", ["given:   100pp", "below 1"]),
        ("--tolerance 1", ["given:   1", "write 1pp for one percentage point"]),
        ("--batch-size 3", ["given:   3", "greater than or equal to 4"]),
        ("--mean x", ["--mean", "given:   x"]),
        ("--mean 0.5", ["mean and std", "given:   mean=[0.5], std=None", "both or neither"]),
        ("--mean 0 --std 0", ["std is not positive", "given:   [0.0]"]),
        ("--mean nan --std 1", ["mean is not finite", "given:   [nan]"]),
        ("--mean 0,0,0 --std 1,1,1", ["channels", "mean and std of 3 channels"]),
        ("--weights none.safetensors", ["none.safetensors: no such file", "safetensors or torch.save"]),
        ("--weights .", ["this is not a file", "safetensors or torch.save"]),
        ("--spec none.toml", ["--spec stands alone", "--limit, --neurons"]),
    ],
)
def test_an_impossible_option_is_refused_before_anything_is_written(
    command: Command, options: str, holds: list[str]
) -> None:
    outcome = command("analyze", *SMALL, "--output", "run", "--epsilons", "0.1", *shlex.split(options))
    assert_refused(outcome, *holds)
    assert_nothing_left()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_refused_where_there_is_none(command: Command) -> None:
    outcome = command("analyze", *SMALL, "--device", "cuda")
    assert_refused(outcome, "given:   cuda", "no CUDA device here", "--device cpu")
    assert_nothing_left()


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("text", ["the weights cannot be read", "safetensors or torch.save"]),
        ("pickle", ["the weights cannot be read", "a pickled network", "safetensors or torch.save"]),
        ("truncated", ["the weights cannot be read", "safetensors or torch.save"]),
        ("shape", ["do not fit", "fc2.bias: (11,)", "fc2.bias: (10,)"]),
        ("missing", ["do not fit", "fc2.bias: missing", "fc2.bias: (10,)"]),
        ("extra", ["do not fit", "extra: (1,)", "extra: not in this network"]),
        ("nan", ["fc2.bias are not finite", "1 NaN or infinite of 10", "finite weights"]),
        ("infinite", ["fc2.bias are not finite", "1 NaN or infinite of 10", "finite weights"]),
    ],
)
def test_unusable_weights_are_refused_with_the_name_of_the_tensor(
    command: Command, tmp_path: Path, kind: str, holds: list[str]
) -> None:
    weights, file = load_file(MODELS["mnist-cnn"].weights), tmp_path / "weights.safetensors"
    if kind == "shape":
        weights["fc2.bias"] = torch.zeros(11)
    elif kind == "missing":
        del weights["fc2.bias"]
    elif kind == "extra":
        weights["extra"] = torch.zeros(1)
    elif kind in ("nan", "infinite"):
        weights["fc2.bias"][3] = torch.nan if kind == "nan" else torch.inf
    if kind == "text":
        file.write_text("<!DOCTYPE html>\n<html>404</html>")
    elif kind == "pickle":
        torch.save(MODELS["mnist-cnn"].build(), file)
    else:
        save_file(weights, file)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    outcome = command("analyze", *SMALL_RUN, "--weights", str(file))
    assert_refused(outcome, *holds)
    assert kind in ("nan", "infinite") or str(file) in outcome.err
    assert_nothing_left()


def test_the_training_split_is_refused_where_it_was_not_fetched(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path / "nowhere"))
    assert_refused(command("analyze", *SMALL, "--split", "train"), "nowhere", "data fetch mnist")
    train = command("train", "--model", "mnist-cnn", "--data", "mnist")
    assert_refused(train, "nowhere", "data fetch mnist")
    assert_nothing_left()


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("layers --model nope", ["given:   nope", "mnist-cnn, mnist-cnn-robust"]),
        ("layers --data nope", ["given:   nope", "allowed: mnist"]),
        ("layers --weights nope", ["nope: no such file", "safetensors or torch.save"]),
        ("data fetch nope", ["given:   nope", "allowed: mnist"]),
        ("train --model nope --data mnist", ["given:   nope"]),
        ("train --model mnist-cnn --data nope", ["given:   nope", "allowed: mnist"]),
        ("train --model mnist-cnn --data mnist --adversarial 8", ["given:   8", '"8/255"']),
        ("train --model mnist-cnn --data mnist --device tpu", ["given:   tpu", "auto, cpu, cuda"]),
        ("harden --model cifar10-resnet20", ["not on this machine", "data fetch cifar10"]),
        ("harden --split val", ["the report is made on the test images", "--split val"]),
        ("harden --epsilon 0", ["epsilon", "above 0"]),
        ("harden --epsilon 8", ["outside the pixel range", '"8/255"']),
        ("harden --rule nope", ["rule", "given:   nope"]),
        ("harden --budget much", ["not a share", "given:   much"]),
        ("harden --strength 1", ["strength", "given:   1"]),
        ("harden --layer fc2", ["yields the logits"]),
        ("harden --site norm", ["conv1 has no site norm"]),
        ("status nope", ["not a run folder", "given:   nope", "run.db"]),
        ("verify nope", ["not a run folder", "given:   nope", "run.db"]),
        ("resume nope", ["not a run folder", "given:   nope", "run.db"]),
        ("status .", ["not a run folder", "given:   .", "run.db"]),
    ],
)
def test_the_other_commands_refuse_in_the_same_way(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, holds: list[str]
) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path / "nowhere"))
    assert_refused(command(*shlex.split(line)), *holds)
    assert_nothing_left()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("analyze --limit many", "--limit"),
        ("analyze --seed -1", "--seed"),
        ("analyze --nope", "--nope"),
        ("train --model mnist-cnn", "--data"),
        ("train --model mnist-cnn --data mnist --epochs 0", "--epochs"),
        ("status", "DIR"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_what_is_no_command_line_at_all_is_named(command: Command, line: str, names: str) -> None:
    outcome = command(*shlex.split(line))
    assert outcome.code == 2
    assert names in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert_nothing_left()


def test_a_name_with_markup_is_printed_as_it_is(command: Command) -> None:
    name = "[bold]nope[/bold] :smile: [/]"
    assert_refused(command("status", name), f"given:   {name}\n")


# --- --spec


def test_a_spec_that_is_not_there_is_refused(command: Command) -> None:
    outcome = command("analyze", "--spec", "none.toml", "--output", "run")
    assert_refused(outcome, "the spec cannot be read", "none.toml", "spec.toml")
    assert_nothing_left()


@pytest.mark.parametrize(
    ("old", "new", "holds"),
    [
        ('model = "mnist-cnn"', 'model = "mnist-cnn', ["cannot be read", "line"]),
        ("seed = 0", "seed = 0\nsead = 1", ["sead", "Extra inputs are not permitted"]),
        ("seed = 0", "", []),
        ('model = "mnist-cnn"', "", []),
        ('    "0.1",', '    "8",', ["given:   8", '"8/255"']),
        ('    "0.1",', '    "0.1", "1/10",', ["given twice", "0.1"]),
        ("limit = 20", 'limit = "x"', ["limit", "given:   x"]),
        ("limit = 20", "limit = 21", ["images differs", "given:   21", "allowed: 20"]),
        ('layer = "first"', 'layer = "conv2"', ["layers differs", "conv2", "new run"]),
        ('device = "cpu"', 'device = "tpu"', ["given:   tpu", "auto, cpu, cuda"]),
    ],
)
def test_a_spec_that_was_edited_is_checked_like_options(
    command: Command, finished: Path, tmp_path: Path, old: str, new: str, holds: list[str]
) -> None:
    text = (finished / "spec.toml").read_text()
    assert text.count(old) == 1
    edited = tmp_path / "edited.toml"
    edited.write_text(text.replace(old, new))
    outcome = command("analyze", "--spec", str(edited), "--output", "run")
    if holds:
        assert_refused(outcome, *holds)
        assert_nothing_left()
    else:
        assert outcome.code == 0  # what is left out has its default
        assert same_neurons(Path("run"), finished)


def test_a_spec_that_is_no_text_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary.toml", tmp_path):
        assert_refused(command("analyze", "--spec", str(path)), "the spec cannot be read", str(path))
    assert_nothing_left()


def test_a_spec_allows_no_other_option(command: Command, finished: Path) -> None:
    spec = str(finished / "spec.toml")
    outcome = command("analyze", "--spec", spec, "--model", "mnist-cnn", "--batch-size", "4")
    assert_refused(outcome, "--spec stands alone", "given:   --batch-size, --model", "--output and --force")
    assert_nothing_left()


def test_a_spec_repeats_its_run(command: Command, finished: Path) -> None:
    outcome = command("analyze", "--spec", str(finished / "spec.toml"), "--output", "again")
    assert outcome.code == 0
    assert same_neurons(Path("again"), finished)
    assert Path("again/spec.toml").read_bytes() == (finished / "spec.toml").read_bytes()


# --- what is asked for


SEVERAL = """
limit = 20
neurons = "3"
epsilons = ["0.1"]
batch_size = 4
device = "cpu"
[[runs]]
model = "mnist-cnn"
[[runs]]
model = "nowhere.py:make"
data = "mnist"
[[runs]]
model = "mnist-cnn"
seed = 1
"""


def test_several_specs_are_run_and_one_that_fails_stops_no_other(
    command: Command, finished: Path, computed: list[str]
) -> None:
    Path("several.toml").write_text(SEVERAL)
    outcome = command("analyze", "--spec", "several.toml", "--output", "all")
    assert outcome.code == 3
    assert "run 2 of 3: " in outcome.err
    assert "nowhere.py" in outcome.err
    assert "1 of 3 runs failed: 2\n" in outcome.err
    folders = [Path(line.split()[-1]).parent for line in outcome.out.splitlines() if "report.html" in line]
    assert sorted(folders) == sorted(Path("all").iterdir())
    assert len(folders) == 2
    assert same_neurons(folders[0], finished)
    assert not same_neurons(folders[1], finished)
    computed.clear()
    assert command("analyze", "--spec", "several.toml", "--output", "all").code == 3
    assert computed == []


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("runs = 3", "runs is not a list of runs"),
        ("runs = []", "runs is not a list of runs"),
        ("[[runs]]\nmodel = 3", "the option model is not usable"),
        ('[[runs]]\nmodel = "mnist-cnn"\ncolour = "red"', "the option colour is not usable"),
        ('[[runs]]\nmodel = "mnist-cnn"\nmean = ["x"]', "the option mean.0 is not usable"),
        ('[[runs]]\ncommand = "harden"', "the spec is of another command"),
    ],
)
def test_a_list_that_is_none_or_holds_what_cannot_be_is_refused(
    command: Command, text: str, holds: str
) -> None:
    Path("several.toml").write_text(text)
    assert_refused(command("analyze", "--spec", "several.toml"), holds)


def test_what_a_spec_leaves_out_is_as_without_the_option(asked: Callable[..., AnalyzeSpec]) -> None:
    Path("short.toml").write_text('model = "mnist-cnn"\n')
    plain = asked("--model", "mnist-cnn")
    assert asked("--spec", "short.toml", "--output", "x", "--force") == plain
    assert asked("--spec", "short.toml", "--engine", "local") == plain
    assert asked("--engine", "local") == asked()  # where a run is computed is not what it is about


@pytest.mark.parametrize(
    ("line", "name"), [("evaluate", "attacks"), ("harden", "epsilon"), ("analyze", "layer")]
)
def test_a_list_of_every_command_has_its_defaults(line: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text('model = "mnist-cnn"\nepsilons = ["0.05", "0.1", "0.2"]\n')
    (spec,) = specs_in(line.split()[0], tmp_path / "short.toml")
    expected = {"attacks": ("fgsm", "pgd", "pgd-strong"), "epsilon": "0.1", "layer": "first"}
    assert getattr(spec, name) == expected[name]


def test_an_engine_and_its_options_go_together(command: Command) -> None:
    assert_refused(command("analyze", *SMALL, "--workers", "2"), "--address and --workers are for another")
    assert_refused(command("analyze", *SMALL, "--engine", "spark"), "there is no such engine")
    both = ["--engine", "ray", "--workers", "2", "--address", "127.0.0.1:1"]
    assert_refused(command("analyze", *SMALL, *both), "a cluster has the workers that it has")
    assert_nothing_left()


class Asked(Exception):  # noqa: N818  (not an error: it carries the spec out)
    pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, command: Command) -> Callable[..., AnalyzeSpec]:
    """The spec that a command line stands for, without running it."""

    def stop(spec: Spec, **_: object) -> None:
        raise Asked(spec)

    monkeypatch.setattr(importlib.import_module("fragile_neurons.cli.running"), "run_spec", stop)

    def ask(*options: str) -> AnalyzeSpec:
        with pytest.raises(Asked) as carried:
            command("analyze", *options)
        spec = carried.value.args[0]
        assert isinstance(spec, AnalyzeSpec)
        return spec

    return ask


def test_no_option_at_all_is_the_embedded_example(asked: Callable[..., AnalyzeSpec]) -> None:
    for options in ([], ["--output", "x"], ["--force"]):
        spec = asked(*options)
        assert (spec.model, spec.data, spec.split, spec.limit) == ("mnist-cnn", "mnist", "test", 2000)
        assert (spec.layer, spec.site, spec.replace, spec.mode) == ("first", "conv", "zero", "adaptive")
        assert spec.epsilons == ("0.1", "0.2")
        assert (spec.tolerance, spec.verdict_rule, spec.batch_size, spec.seed) == (0.01, "tested", 256, 0)


def test_any_option_brings_the_epsilons_of_the_data(asked: Callable[..., AnalyzeSpec]) -> None:
    assert asked("--limit", "20").epsilons == ("0.05", "0.1", "0.2")


@pytest.mark.parametrize(
    ("text", "epsilons"),
    [
        ("0", ("0",)),
        ("8/255", ("8/255",)),
        ("0.2, 0.1,0", ("0", "0.1", "0.2")),
        ("51/255", ("0.2",)),
        ("1", ("1",)),
        ("", ()),
    ],
)
def test_epsilons_are_taken_exactly_and_sorted(
    asked: Callable[..., AnalyzeSpec], text: str, epsilons: tuple[str, ...]
) -> None:
    assert asked("--epsilons", text).epsilons == epsilons


@pytest.mark.parametrize(("text", "tolerance"), [("2pp", 0.02), ("0.5pp", 0.005), ("0.03", 0.03)])
def test_a_tolerance_is_points_or_a_fraction(
    asked: Callable[..., AnalyzeSpec], text: str, tolerance: float
) -> None:
    assert asked("--tolerance", text).tolerance == pytest.approx(tolerance, abs=1e-15)


def test_every_option_reaches_the_spec(asked: Callable[..., AnalyzeSpec]) -> None:
    spec = asked(
        *shlex.split(
            "--model mnist-cnn-robust --weights w.safetensors --mean 0.5 --std 0.25 --split val --limit 50 "
            "--resize 32 --skip-bad --layer conv2 --neurons 4 --site act --replace mean --mode transfer "
            "--verdict-rule below-mean --tolerance 2pp --device cpu --batch-size 32 --seed 7 --epsilons 1/255"
        )
    )
    expected = {
        "model": "mnist-cnn-robust", "weights": str(Path("w.safetensors").absolute()),
        "mean": (0.5,), "std": (0.25,),
        "data": "mnist", "split": "val", "limit": 50, "layer": "conv2", "neurons": "4", "site": "act",
        "replace": "mean", "mode": "transfer", "verdict_rule": "below-mean", "tolerance": 0.02,
        "device": "cpu", "batch_size": 32, "seed": 7, "resize": "32", "skip_bad": True,
        "epsilons": ("1/255",), "found": None,
    }  # fmt: skip
    assert {name: getattr(spec, name) for name in expected} == expected


# --- what is shown


def test_a_run_shows_accuracies_verdicts_neurons_headlines_and_its_folder(
    command: Command, finished: Path, computed: list[str]
) -> None:
    outcome = command("analyze", *SMALL_RUN, "--output", str(finished))
    assert outcome.code == 0
    assert computed == []  # the same run again is done already
    summary = open_run(finished).summary
    shown = " ".join(outcome.out.split())
    assert "mnist-cnn on 20 test images of mnist, site conv" in shown
    value = 100 * summary["clean_accuracy"]["value"]
    assert f"clean accuracy {value:.1f} % [" in shown
    assert f"FGSM 0.1 {100 * summary['robust_accuracy'][0]['value']:.1f} % [" in shown
    assert "conv1, clean" in shown
    assert "Largest clean margin drop" in shown
    assert "Most targeted neurons, FGSM 0.1" in shown
    assert shown.count("FGSM 0.1, conv1, ") == 2
    letters = re.sub(r"\W", "", outcome.out)
    for row in summary["dropout"]:  # in full, however the line is broken
        assert re.sub(r"\W", "", sentences.verdicts(row)) in letters
    assert f"The run is in {finished} (" in shown
    neurons = {f"{row['layer']}:{row['channel']}" for row in open_run(finished).neurons.to_pylist()}
    assert set(re.findall(r"conv1:\d+", shown)) == neurons


def test_a_clean_run_goes_to_the_default_folder_and_speaks_of_no_attack(command: Command) -> None:
    outcome = command("analyze", *SMALL, "--epsilons", "")
    assert outcome.code == 0
    assert "Largest clean margin drop" in outcome.out
    assert "targeted" not in outcome.out
    assert "strike" not in outcome.out
    assert "[–" not in outcome.out
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"mnist-cnn-mnist-[0-9a-f]{8}", folder.name)
    assert open_run(folder).neurons.num_rows == 3


def test_epsilon_zero_and_a_fraction_run_in_order_with_exact_names(command: Command) -> None:
    outcome = command("analyze", *SMALL, "--epsilons", "0.2,8/255,0", "--output", "run")
    assert outcome.code == 0
    assert tomllib.loads(Path("run/spec.toml").read_text())["epsilons"] == ["0", "8/255", "0.2"]
    summary = open_run(Path("run")).summary
    assert [row["epsilon"] for row in summary["robust_accuracy"]] == ["0", "8/255", "0.2"]
    assert summary["robust_accuracy"][0]["value"] == summary["clean_accuracy"]["value"]
    assert {pair["epsilon"] for pair in summary["correlation"]} == {"8/255", "0.2"}
    assert "FGSM 8/255" in outcome.out


@pytest.mark.parametrize("line", ["", *COMMANDS, "data"])
def test_help_works_everywhere_and_shows_an_example(command: Command, line: str) -> None:
    outcome = command(*shlex.split(line), "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert re.search(rf"Examples?: fragile-neurons {line}", text)


def test_a_plan_explains_its_options_as_analyze_does(command: Command) -> None:
    said = [" ".join(command(name, "--help").out.split()) for name in ("analyze", "plan")]
    for text in ("Of every random choice.", "A name (see", "such as 0.1"):
        assert all(text in one for one in said) or all(text not in one for one in said)
    assert "Of every random choice." in said[1]


def test_the_version_is_that_of_the_package(command: Command) -> None:
    outcome = command("--version")
    assert outcome.code == 0
    assert outcome.out == f"fragile-neurons {version('fragile-neurons')}\n"


def test_no_command_shows_the_commands(command: Command) -> None:
    outcome = command()
    for name in (
        "analyze",
        "evaluate",
        "harden",
        "resume",
        "status",
        "verify",
        "layers",
        "models",
        "train",
        "data",
    ):
        assert re.search(rf"^\W*{name}\b", outcome.out + outcome.err, re.MULTILINE)


def test_layers_lists_what_can_be_chosen_and_what_cannot(command: Command) -> None:
    outcome = command("layers", "--model", "mnist-cnn")
    assert outcome.code == 0
    lines = [line.split("│")[1:-1] for line in outcome.out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line] for line in lines]
    named = {row[0]: row[1:] for row in rows if row[0]}
    assert named["conv1"][:4] == ["Conv2d", "32", "28 x 28", "conv, act"]
    assert named["conv2"][:4] == ["Conv2d", "64", "14 x 14", "conv, act"]
    assert named["fc1"][:4] == ["Linear", "128", "a number", "conv, act"]
    assert " ".join(row[5] for row in rows).split() == ["yields", "the", "logits:", "never", "a", "target"]
    assert list(named) == ["conv1", "conv2", "fc1", "fc2"]


def test_the_layers_of_an_architecture_need_no_weights(command: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", images=np.zeros((4, 3, 32, 32), np.uint8), labels=np.arange(4))
    for name in ("resnet20", "resnet18"):
        outcome = command("layers", "--model", name, "--data", f"npz:{tmp_path / 'some.npz'}")
        assert outcome.code == 0, outcome.err
        assert "conv1" in outcome.out


def test_models_lists_every_bundled_network_with_its_accuracies(command: Command) -> None:
    outcome = command("models")
    assert outcome.code == 0
    for model in MODELS.values():
        assert model.name in outcome.out
        assert f"{100 * model.card()['clean_accuracy']['value']:.1f} %" in outcome.out
    assert "421,642" in outcome.out


def test_data_list_says_what_is_on_this_machine(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path / "nowhere"))
    outcome = command("data", "list")
    assert outcome.code == 0
    for part in ("mnist", "55,000", "5,000", "10,000", "CC BY-SA 3.0", "bundled"):
        assert part in outcome.out


# --- output folders


def test_another_run_in_the_folder_is_refused_and_replaced_with_force(command: Command, own: Path) -> None:
    (own / "notes.txt").write_text("mine")
    before = (own / "neurons.csv").read_bytes()
    other = ["analyze", *SMALL_RUN, "--neurons", "2", "--seed", "1", "--output", str(own)]
    assert_refused(command(*other), str(own), "differs in: seed, neurons, data_sha256, layers", "--force")
    assert (own / "neurons.csv").read_bytes() == before
    assert command(*other, "--force").code == 0
    assert open_run(own).neurons.num_rows == 2
    assert (own / "notes.txt").read_text() == "mine"
    assert command("verify", str(own)).code == 0


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_or_file_that_is_no_run_is_refused_also_with_force(
    command: Command, tmp_path: Path, force: list[str]
) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "neurons.csv").write_text("mine")
    for place in (thesis, thesis / "neurons.csv"):
        outcome = command("analyze", *SMALL_RUN, "--output", str(place), *force)
        assert_refused(outcome, "not a run folder", str(place), "choose another --output")
    assert [path.name for path in thesis.iterdir()] == ["neurons.csv"]
    assert (thesis / "neurons.csv").read_text() == "mine"
    assert_nothing_left()


def test_a_folder_that_cannot_be_made_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (str(tmp_path / "file" / "run"), "/proc/run"):
        outcome = command("analyze", *SMALL_RUN, "--output", place)
        assert_refused(outcome, "cannot be written", place, "choose another --output")
    assert_nothing_left()


# --- status, verify, resume


def test_a_finished_run_is_whole_for_every_command(
    command: Command, finished: Path, computed: list[str]
) -> None:
    status = command("status", str(finished))
    assert (status.code, status.err) == (0, "")
    assert f"{UNITS} of {UNITS} units done" in status.out
    verify = command("verify", str(finished))
    assert (verify.code, verify.err) == (0, "")
    assert f"{UNITS} units and all files are as they were written" in verify.out
    assert command("resume", str(finished)).code == 0
    assert computed == []


def test_an_unfinished_run_says_how_far_it_is_and_is_finished_by_resume(
    command: Command, unfinished: Path, finished: Path, computed: list[str]
) -> None:
    computed.clear()
    status = command("status", str(unfinished))
    assert_refused(status, f"2 of {UNITS} units done", f"fragile-neurons resume {unfinished}", code=3)
    verified = command("verify", str(unfinished))
    assert verified.code == 0  # what there is, is whole
    assert f"2 of {UNITS} units are as they were written, the rest is not there yet" in verified.out
    assert command("resume", str(unfinished)).code == 0
    assert len(computed) == UNITS - 2
    assert same_neurons(unfinished, finished)
    assert command("status", str(unfinished)).code == 0


def test_the_same_command_again_resumes_too(
    command: Command, unfinished: Path, finished: Path, computed: list[str]
) -> None:
    computed.clear()
    assert command("analyze", *SMALL_RUN, "--output", str(unfinished)).code == 0
    assert len(computed) == UNITS - 2
    assert same_neurons(unfinished, finished)


def test_a_damaged_result_is_named_by_verify_and_made_again_by_resume(
    command: Command, own: Path, finished: Path, computed: list[str]
) -> None:
    with closing(sqlite3.connect(own / "run.db")) as connection, connection:
        connection.execute("UPDATE results SET arrays = x'00' || substr(arrays, 2) WHERE unit LIKE 'drops%'")
    verify = command("verify", str(own))
    assert_refused(verify, "is damaged: unit drops conv1:", f"fragile-neurons resume {own}", code=4)
    computed.clear()
    assert command("resume", str(own)).code == 0
    assert [unit.split()[0] for unit in computed] == ["drops"] * 5
    assert command("verify", str(own)).code == 0
    assert same_neurons(own, finished)


def test_a_damaged_file_is_named_by_verify_and_written_again_by_resume(
    command: Command, own: Path, finished: Path, computed: list[str]
) -> None:
    content = (own / "neurons.csv").read_text()
    (own / "neurons.csv").write_text(content.replace("0.1", "0.7", 1))
    (own / "summary.md").unlink()
    verify = command("verify", str(own))
    assert_refused(verify, "is damaged: file neurons.csv, file summary.md\n", code=4)
    computed.clear()
    assert command("resume", str(own)).code == 0
    assert computed == []
    assert same_neurons(own, finished)
    assert command("verify", str(own)).code == 0


@pytest.mark.parametrize("name", ["status", "verify", "resume"])
@pytest.mark.parametrize("length", [0, 50, 4096, 9000])
def test_a_truncated_run_is_an_integrity_failure(command: Command, own: Path, name: str, length: int) -> None:
    database = own / "run.db"
    database.write_bytes(database.read_bytes()[:length])
    assert_refused(command(name, str(own)), str(own), code=4)


def test_a_run_whose_model_changed_is_not_resumed(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    weights = load_file(MODELS["mnist-cnn"].weights)
    save_file(weights, file)
    assert command("analyze", *SMALL, "--epsilons", "", "--weights", str(file), "--output", "run").code == 0
    weights["fc2.bias"] = weights["fc2.bias"] + 1
    save_file(weights, file)
    assert_refused(command("resume", "run"), "weights_sha256 differs", "bring back the same model")


# --- real processes


SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from fragile_neurons.cli import main
from fragile_neurons.cli.specs import specs_in
from fragile_neurons.runs.engines import local

execute, number, times, left = local.execute_unit, *(int(sys.argv.pop(1)) for _ in range(3))

def signalled(*arguments):
    global left
    if left == 0:
        for _ in range(times):
            os.kill(os.getpid(), number)
    left -= 1
    return execute(*arguments)

local.execute_unit = signalled
main()
"""


@pytest.mark.parametrize(
    ("number", "times", "stored"),
    [(signal.SIGINT, 1, 4), (signal.SIGTERM, 1, 4), (signal.SIGINT, 2, 3), (signal.SIGKILL, 1, 3)],
)
def test_a_signal_finishes_the_unit_at_work_a_second_one_or_a_kill_loses_at_most_that(
    command: Command,
    finished: Path,
    tmp_path: Path,
    computed: list[str],
    number: signal.Signals,
    times: int,
    stored: int,
) -> None:
    """Signalled when the fourth unit begins."""
    folder = tmp_path / "signalled"
    arguments = [sys.executable, "-c", SIGNALLED, str(int(number)), str(times), "3"]
    process = subprocess.run(
        [*arguments, "analyze", *SMALL_RUN, "--output", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.stdout == ""
    if number is not signal.SIGKILL:
        assert process.returncode == 130
        assert "stopping when this piece of work is done; once more stops at once" in process.stderr
        assert f"interrupted\n  finished units are kept, go on with: fragile-neurons resume {folder}" in (
            process.stderr
        )
        assert "Traceback" not in process.stderr
    else:
        assert process.returncode == -signal.SIGKILL
    assert_refused(command("status", str(folder)), f"{stored} of {UNITS} units done", code=3)
    computed.clear()
    assert command("resume", str(folder)).code == 0
    assert len(computed) == UNITS - stored
    assert same_neurons(folder, finished)
    assert command("verify", str(folder)).code == 0


def test_the_installed_command_refuses_with_one_message(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "fragile-neurons"
    process = subprocess.run(
        [script, "analyze", "--limit", "20", "--epsilons", "8"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    outcome = Outcome(process.returncode, plain(process.stdout), plain(process.stderr))
    assert_refused(outcome, "given:   8", 'did you mean "8/255"?')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_without_options_finishes_with_every_file(command: Command) -> None:
    outcome = command("analyze")
    assert outcome.code == 0
    (folder,) = Path("runs").iterdir()
    run = open_run(folder)
    assert run.summary["data"]["n"] == 2000
    assert [row["epsilon"] for row in run.summary["robust_accuracy"]] == ["0.1", "0.2"]
    assert run.neurons.num_rows == 2 * 32
    assert command("verify", str(folder)).code == 0


# --- evaluate


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ("--attacks cw", ["there is no such attack", "given:   cw", "fgsm, pgd, pgd-margin", "file.py:"]),
        ("--attacks fgsm,fgsm", ["the option attacks is not usable", "each attack once", "evaluate --help"]),
        ("--attacks ''", ["the option attacks is not usable"]),
        ("--attacks gone.py:attack", ["there is no file", "gone.py:attack"]),
        ("--epsilons ''", ["the option epsilons is not usable", "at least one epsilon above 0"]),
        ("--epsilons 1e-9", ["too small for any pixel", "given:   1e-09"]),
        ("--epsilons 2", ["given:   2", '"2/255"']),
        ("--spec none.toml", ["--spec stands alone", "--limit"]),
        ("--batch-size 3", ["given:   3", "greater than or equal to 4"]),
    ],
)  # fmt: skip
def test_an_impossible_evaluation_is_refused_before_anything_is_written(
    command: Command, options: str, holds: list[str]
) -> None:
    outcome = command(
        "evaluate", "--limit", "20", "--output", "run", "--epsilons", "0.1", *shlex.split(options)
    )
    assert_refused(outcome, *holds)
    assert_nothing_left()


def test_a_folder_of_the_other_command_is_refused(command: Command, finished: Path) -> None:
    outcome = command("evaluate", "--limit", "20", "--epsilons", "0.1", "--output", str(finished))
    assert_refused(outcome, "the folder holds another run", "differs in: command", "--force")


def test_an_evaluation_shows_attacks_worst_case_and_checks(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fragile_neurons.attacks.autoattack.is_installed", lambda: False)
    Path("mine.py").write_text(
        "import torch\n"
        "def still(classifier, images, labels, epsilons, *, generator=None):\n"
        "    return torch.stack([images for _ in epsilons])\n"
    )
    options = ["--limit", "20", "--epsilons", "0.1,0.2", "--output", "run"]
    shown = command("evaluate", *options, "--attacks", "fgsm,autoattack,mine.py:still")
    assert shown.code == 0
    text = " ".join(shown.out.split())
    assert "mnist-cnn on 20 test images of mnist: clean accuracy" in text
    assert "autoattack not installed: pip install 'fragile-neurons[autoattack]'" in text
    assert "mine.py:still" in text
    assert "worst case" in text
    assert "median" in text
    assert "Checks:" in text
    assert "The run is in run" in text
    again = command("evaluate", *options, "--attacks", "fgsm,autoattack,mine.py:still")
    assert again.code == 0
    assert again.out == shown.out
    assert command("verify", "run").code == 0
    other = command("analyze", "--spec", "run/spec.toml", "--output", "other")
    assert_refused(
        other, "the spec is of another command", "given:   evaluate", "evaluate --spec run/spec.toml"
    )
    repeated = command("evaluate", "--spec", "run/spec.toml", "--output", "again")
    assert repeated.code == 0
    for name in ("summary.json", "images.parquet"):
        assert (Path("again") / name).read_bytes() == (Path("run") / name).read_bytes()


def test_no_option_at_all_is_the_bundled_network(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def carry(spec: Spec, **_: object) -> None:
        raise Asked(spec)

    monkeypatch.setattr(sys.modules["fragile_neurons.cli.running"], "run_spec", carry)
    with pytest.raises(Asked) as carried:
        command("evaluate")
    spec = carried.value.args[0]
    assert (spec.model, spec.data, spec.limit, spec.epsilons) == (
        "mnist-cnn", "mnist", 2000, ("0.05", "0.1", "0.2"),
    )  # fmt: skip
    assert spec.attacks == ("fgsm", "pgd", "pgd-strong")


# --- plan


def test_a_plan_says_what_each_way_costs_and_writes_nothing(command: Command) -> None:
    outcome = command("plan", *SMALL_RUN)
    assert outcome.code == 0, outcome.err
    ways = [line.split()[0] for line in outcome.out.splitlines() if line.strip()]
    assert [way for way in ways if way in ("reference", "exact", "sampled")] == [
        "reference",
        "exact",
        "sampled",
    ]
    assert "--sweep auto takes exact" in outcome.out
    assert not list(Path().iterdir())


def test_a_plan_for_more_images_and_several_workers(command: Command) -> None:
    found = []
    for options in ([], ["--images", "40"], ["--images", "20000000", "--workers", "4"]):
        outcome = command("plan", *SMALL_RUN, *options)
        assert outcome.code == 0, outcome.err
        lines = [line.split() for line in outcome.out.splitlines()]
        row = next(line for line in lines if line[:1] == ["reference"])
        found.append((int(row[1].replace(",", "")), outcome.out))
    assert found[1][0] == 2 * found[0][0]
    assert "20 images of mnist" in found[0][1]
    assert "20,000,000 images of mnist, 4 workers of" in found[2][1]
    assert "hours" in found[2][1]
    assert "minutes" in found[1][1]


def test_a_plan_names_the_ways_that_cannot_be_had(command: Command) -> None:
    Path("branching.py").write_text(
        "import torch\n"
        "class Branching(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(1, 4, 3)\n"
        "        self.fc = torch.nn.Linear(4 * 26 * 26, 10)\n"
        "    def forward(self, x):\n"
        "        h = self.conv(x)\n"
        "        return self.fc(h.flatten(1)) if h.sum() != 1 else h.flatten(1)[:, :10]\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return Branching()\n"
    )
    outcome = command("plan", "--model", "branching.py:make", "--data", "mnist", "--limit", "40")
    assert outcome.code == 0, outcome.err
    assert "exact cannot be had: " in outcome.out
    assert "--sweep auto takes reference" in outcome.out


def test_a_plan_refuses_what_analyze_refuses(command: Command) -> None:
    assert_refused(command("plan", "--model", "nothing"), "nothing")


@pytest.mark.slow
def test_harden_mends_the_bundled_network_and_resumes_as_done(command: Command, tmp_path: Path) -> None:
    line = "harden --epsilon 0.1 --epsilons 0.1 --limit 60 --steps 60 --output run"
    outcome = command(*shlex.split(line))
    assert outcome.code == 0
    assert "Verdict at epsilon 0.1: holds" in outcome.out
    assert "all weights" in outcome.out
    again = command("resume", "run")
    assert (again.code, again.out) == (0, outcome.out)
    assert command("verify", "run").code == 0
    mended = command(
        "evaluate",
        "--weights",
        "run/hardened.safetensors",
        *shlex.split("--attacks fgsm --epsilons 0.1 --limit 60 --output judged"),
    )
    assert mended.code == 0
    found = open_run(Path("run")).summary["hardening"]["accuracies"]
    fgsm = next(row for row in found if (row["network"], row["attack"]) == ("hardened", "fgsm"))
    judged = open_run(Path("judged")).summary["robust_accuracy"][0]
    assert judged["value"] == pytest.approx(fgsm["value"], abs=0.034)
