"""Disks that are full, small or read-only: one message, and what was finished is kept."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small import NEURONS, UNITS, finish

from fragile_neurons import InputError, open_run
from fragile_neurons.runs.engines import local
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.remaining import silent
from fragile_neurons.runs.run import open_intact_run
from fragile_neurons.runs.subject import Subject
from fragile_neurons.workflows import report, run_subject


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def kept_units(folder: Path) -> int:
    if not (folder / "run.db").exists():
        return 0
    with Ledger(folder) as ledger:
        assert ledger.damage() == []
        return len(ledger.units()) - len(ledger.pending())


@pytest.mark.parametrize("kilobytes", [0, 1, 8, 24, 48, 64])
def test_a_disk_that_takes_no_more_is_one_message_and_finished_units_are_kept(
    subject: Subject, finished: Path, tmp_path: Path, kilobytes: int, engine: Callable[..., list[str]]
) -> None:
    folder = tmp_path / "run"
    before = engine()
    with (
        file_size_limit(1024 * kilobytes),
        pytest.raises(InputError, match="the run folder cannot be written"),
    ):
        finish(subject, folder)
    kept = kept_units(folder)
    assert kept in (len(before), len(before) - 1)
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".partial")]
    after = engine()
    finish(subject, folder)
    assert len(after) == UNITS - kept
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


HOLDING = """
import sys, time
from pathlib import Path
from fragile_neurons.locks import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    subject: Subject, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work"):
            run_subject(subject, output=folder, force=True, progress=silent)
        assert list(folder.iterdir()) == []
        other.kill()
    finish(subject, folder)
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


DISK = 3072  # kB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MB; only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield place
    finally:
        # lazy: a file on it may still wait to be closed
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(
    subject: Subject, finished: Path, small_disk: Path, engine: Callable[..., list[str]]
) -> None:
    folder = small_disk / "run"
    kept = []
    ballast = small_disk / "ballast"
    for free in (0, 20, 40, 60, 100, 140):
        ballast.write_bytes(b"\0" * 1024 * (DISK - free) if free else b"")
        if free == 0:
            with pytest.raises(OSError, match="No space left"):
                ballast.write_bytes(b"\0" * 1024 * 2 * DISK)
        engine()
        with pytest.raises(InputError) as error:
            finish(subject, folder)
        assert "the run folder cannot be written" in str(error.value)
        assert "full" in str(error.value)
        ballast.write_bytes(b"")
        kept.append(kept_units(folder))
    assert kept == sorted(kept)
    after = engine()
    finish(subject, folder)
    assert len(after) == UNITS - kept[-1]
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


def test_a_read_only_disk_is_read_and_one_message_for_writing(
    subject: Subject, finished: Path, small_disk: Path
) -> None:
    remount = ["mount", "-o", "remount,{}", str(small_disk)]
    shutil.copytree(finished, small_disk / "run")
    subprocess.run([part.format("ro") for part in remount], check=True)
    with pytest.raises(InputError, match=r"cannot be written\n.*Read-only file system"):
        finish(subject, small_disk / "new")
    assert open_run(small_disk / "run").neurons.num_rows == NEURONS
    assert open_intact_run(small_disk / "run").summary["data"]["n"] > 0
    with pytest.raises(InputError, match=r"cannot be written\n.*Read-only file system"):
        report(small_disk / "run")
    subprocess.run([part.format("rw") for part in remount], check=True)
    assert open_run(small_disk / "run").neurons.num_rows == NEURONS


def test_a_folder_that_cannot_be_made_is_one_message(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(InputError) as error:
            finish(subject, folder)
        assert str(folder) in str(error.value)
        assert "choose another --output" in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_moved_in_the_middle_is_one_message_and_goes_on_where_it_is(
    subject: Subject, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def move(subject: Subject, unit: Unit, *given: Any) -> dict[str, Any]:
        if unit.kind == "orders":
            folder.rename(moved)
        return execute_unit(subject, unit, *given)

    monkeypatch.setattr(local, "execute_unit", move)
    with pytest.raises(InputError, match="the run folder cannot be written"):
        finish(subject, folder)
    monkeypatch.undo()
    assert kept_units(moved) == UNITS  # run.db goes with it; the files had no folder any more
    finish(subject, moved)
    assert (moved / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()
