"""A run that is killed anywhere goes on to the same bytes, and computes nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small import BATCH, CONTRACT_FILES, IMAGES, UNITS, finish

from fragile_neurons import (
    IncompleteError,
    open_run,
)
from fragile_neurons.runs.environment import environment
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import PARTIAL, Ledger
from fragile_neurons.runs.plan import Needs, make_plan
from fragile_neurons.runs.subject import Subject


@pytest.mark.parametrize("done", range(0, 23, 3))
def test_a_kill_at_any_unit_boundary_and_a_resume_do_not_change_a_byte(
    subject: Subject, finished: Path, tmp_path: Path, engine: Callable[..., list[str]], done: int
) -> None:
    with Ledger(finished) as ledger:
        every = [unit.id for unit in ledger.units()]
    assert len(every) == UNITS
    before = engine(stop_at=done)
    folder = tmp_path / "run"
    if done < len(every):
        with pytest.raises(KeyboardInterrupt) as stop:
            finish(subject, folder)
        assert f"fragile-neurons resume {folder}" in "".join(stop.value.__notes__)
        with pytest.raises(IncompleteError, match=f"{len(every) - done} of {len(every)} units are left"):
            open_run(folder)
    else:
        finish(subject, folder)
    after = engine()
    finish(subject, folder)
    assert before + after == every
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


def test_a_kill_between_the_last_unit_and_the_files_is_made_good(
    subject: Subject, finished: Path, tmp_path: Path, engine: Callable[..., list[str]]
) -> None:
    units = make_plan(subject.selection, IMAGES, BATCH)
    folder = tmp_path / "run"
    folder.mkdir()
    with Ledger.create(folder, subject.spec, units, environment(subject)) as ledger:
        for unit in units:
            given = [(one, ledger.result(one)) for one in Needs(units).of(unit)]
            ledger.record(unit, execute_unit(subject, unit, given))
    (folder / ".neurons.csv.partial").write_text("half a line")
    with pytest.raises(IncompleteError, match=f"0 of {UNITS} units are left"):
        open_run(folder)
    computed = engine()
    finish(subject, folder)
    assert computed == []
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()
    assert {path.name for path in folder.iterdir()} == CONTRACT_FILES


def test_a_kill_in_the_first_moment_leaves_a_folder_that_can_be_used(
    subject: Subject, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / PARTIAL).write_bytes(b"SQLite format 3\0 and no more")
    (folder / f"{PARTIAL}-journal").write_bytes(b"\0" * 512)
    finish(subject, folder)
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()
    assert {path.name for path in folder.iterdir()} == CONTRACT_FILES


def test_a_second_run_of_a_finished_one_computes_and_writes_nothing(
    subject: Subject, own: Path, engine: Callable[..., list[str]]
) -> None:
    computed = engine()
    before = {path.name: path.stat().st_mtime_ns for path in own.iterdir() if path.suffix != ".db"}
    finish(subject, own)
    assert computed == []
    assert before == {path.name: path.stat().st_mtime_ns for path in own.iterdir() if path.suffix != ".db"}
