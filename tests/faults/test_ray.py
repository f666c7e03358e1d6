"""Many processes: the same bytes as one, whoever of them dies; each test on a loopback of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from on_ray import SUBJECTS
from small import UNITS, finish, small_subject

from fragile_neurons.runs.ledger import Ledger

SCRIPT = Path(__file__).with_name("on_ray.py")
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "alone"]
CONV1 = "module.conv1:0-3"  # of the network with a fault
SECONDS = re.compile(rb'("seconds": |hardened(?: \| |</td><td>)\d+(?: \| |</td><td>))[0-9.e-]+')
FILES = ("neurons.csv", "summary.json", "targeting.parquet", "cumulative.parquet", "images.parquet")


def alone() -> list[str]:
    """What gives a command a network of its own, where that can be had."""
    there = all(shutil.which(name) for name in ("unshare", "ip"))
    return ALONE if there and subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0 else []


def on_ray(folder: Path, *options: object, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [*alone(), sys.executable, str(SCRIPT), str(folder), *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def files(folder: Path) -> dict[str, bytes]:
    """All but the ledger, which holds times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("run.db")}


def timeless(found: dict[str, bytes]) -> dict[str, bytes]:
    """The same without the seconds that fits took, nor what the tables make of them."""
    return {name: SECONDS.sub(rb"\1", content) for name, content in found.items()}


def assert_same(folder: Path, finished: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_two_workers_compute_the_same_bytes_as_this_process(finished: Path, tmp_path: Path) -> None:
    found = on_ray(tmp_path / "run", "--workers", 2)
    assert len(found["computed"]) == len(set(found["computed"])) == UNITS
    assert_same(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "options", "environment"),
    [
        (1, ["--neurons-per-unit", 7], {}),
        (2, ["--neurons-per-unit", 1, "--shuffled"], {}),
        (4, ["--shuffled"], {"OMP_NUM_THREADS": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}),
    ],
)
def test_neither_workers_nor_units_nor_order_nor_environment_change_a_byte(
    finished: Path, tmp_path: Path, workers: int, options: list[object], environment: dict[str, str]
) -> None:
    on_ray(tmp_path / "run", "--workers", workers, *options, **environment)
    assert_same(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["sampled", "own", "evaluate", "proportional", "learned"])
def test_every_command_and_way_leaves_the_folder_that_this_process_does(tmp_path: Path, asked: str) -> None:
    on_ray(tmp_path / "ray", "--workers", 2, "--subject", asked)
    finish(SUBJECTS[asked](), tmp_path / "here")
    assert timeless(files(tmp_path / "ray")) == timeless(files(tmp_path / "here"))


@pytest.mark.slow
def test_a_run_is_stopped_resumed_by_ray_and_finished_here(finished: Path, tmp_path: Path) -> None:
    stopped = [on_ray(tmp_path / "run", "--workers", 2, "--stop-after", 5) for _ in range(2)]
    assert [one["failure"] for one in stopped] == ["stopped", "stopped"]
    with Ledger(tmp_path / "run") as ledger:
        left = {unit.id for unit in ledger.pending()}
    computed = [unit for one in stopped for unit in one["computed"]]
    # what the workers were at is stored, too
    assert len(computed) == len(set(computed)) == 10 <= UNITS - len(left) <= 10 + 2 * 2
    finish(small_subject(), tmp_path / "run")
    assert files(tmp_path / "run") == files(finished)


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced_and_nothing_is_computed_twice(
    finished: Path, tmp_path: Path
) -> None:
    found = on_ray(tmp_path / "run", "--workers", 2, "--neurons-per-unit", 1, "--kill", 5)
    assert (found["killed"], found["failure"]) == (5, "")
    assert len(found["computed"]) == len(set(found["computed"]))
    assert_same(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"), [("exit", "WorkerCrashedError"), ("raise", "MemoryError: no room for this batch")]
)
def test_a_unit_that_kills_its_workers_or_raises_is_recorded_and_the_rest_is_finished(
    tmp_path: Path, fault: str, reason: str
) -> None:
    found = on_ray(tmp_path / "run", "--workers", 2, "--subject", fault)
    assert found["failure"].startswith("3: ")
    assert reason in found["failure"]
    with Ledger(tmp_path / "run") as ledger:
        failed, pending = set(ledger.failures), {unit.id for unit in ledger.pending()}
        units = {unit.id for unit in ledger.units()}
    assert failed <= pending
    assert {name for name in failed if name.startswith("drops")} == {f"drops {CONV1} images 8-15"}
    assert units - pending == set(found["computed"]) - failed
    # whatever neither shows the batch nor needs what does is there
    assert {unit for unit in units if unit.startswith("drops")} - pending == {
        f"drops {CONV1} images {start}-{start + 7}" for start in (0, 16, 24, 32)
    }


@pytest.mark.slow
def test_a_machine_whose_processor_computes_other_numbers_is_left_out(finished: Path, tmp_path: Path) -> None:
    on_ray(tmp_path / "run", "--workers", 1, "--strange", 1)
    assert_same(tmp_path / "run", finished)
    found = on_ray(tmp_path / "other", "--workers", 0, "--strange", 1)
    assert found["failure"].startswith("2: every machine would compute other numbers than this one")
    assert "processor" in found["failure"]
    assert found["computed"] == []
