"""What is not as it was written is found, and only that is made again."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from small import CONTRACT_FILES, finish

from fragile_neurons import (
    IntegrityError,
    open_run,
)
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.subject import Subject


def test_a_finished_run_is_whole(finished: Path) -> None:
    with Ledger(finished) as ledger:
        assert ledger.damage() == []


def flip_in_result(folder: Path, unit: str, position: int) -> None:
    with closing(sqlite3.connect(folder / "run.db")) as connection, connection:
        ((content,),) = connection.execute("SELECT arrays FROM results WHERE unit = ?", (unit,)).fetchall()
        damaged = bytearray(content)
        damaged[position % len(damaged)] ^= 1 << (position % 8)
        connection.execute("UPDATE results SET arrays = ? WHERE unit = ?", (bytes(damaged), unit))


def flip_in_file(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0, 7_001, -1])
def test_a_flipped_bit_in_any_stored_result_is_found_and_made_good(
    subject: Subject, own: Path, finished: Path, position: int, engine: Callable[..., list[str]]
) -> None:
    with Ledger(own) as ledger:
        units = [unit.id for unit in ledger.units()]
    for unit in units:
        flip_in_result(own, unit, position)
        with Ledger(own) as ledger:
            assert ledger.damage() == [f"unit {unit}"]
        flip_in_result(own, unit, position)  # back again
    damaged = units[-1]
    flip_in_result(own, damaged, position)
    computed = engine()
    finish(subject, own)
    assert computed == [damaged]
    with Ledger(own) as ledger:
        assert ledger.damage() == []
    assert (own / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


@pytest.mark.parametrize("name", sorted(CONTRACT_FILES - {"run.db"}))
@pytest.mark.parametrize("position", [0, 1_003, -1])
def test_a_flipped_bit_in_any_file_is_found(own: Path, name: str, position: int) -> None:
    flip_in_file(own / name, position)
    with Ledger(own) as ledger:
        assert ledger.damage() == [f"file {name}"]


def test_a_removed_file_is_found_and_written_again_without_computing(
    subject: Subject, own: Path, finished: Path, engine: Callable[..., list[str]]
) -> None:
    (own / "neurons.csv").unlink()
    with Ledger(own) as ledger:
        assert ledger.damage() == ["file neurons.csv"]
    computed = engine()
    finish(subject, own)
    assert computed == []
    assert (own / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


def contents(database: Path) -> list[str] | None:
    try:
        with closing(sqlite3.connect(database)) as connection:
            return list(connection.iterdump())
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return None


def test_a_flipped_bit_anywhere_in_the_database_is_found_if_it_changes_anything(own: Path) -> None:
    whole = (own / "run.db").read_bytes()
    before = contents(own / "run.db")
    positions = random.Random(0).sample([i for i, byte in enumerate(whole) if byte], 60)
    found = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        (own / "run.db").write_bytes(damaged)
        try:
            with Ledger(own) as ledger:
                seen = bool(ledger.damage())
        except IntegrityError:
            seen = True
        (own / "run.db").write_bytes(damaged)
        assert seen or contents(own / "run.db") == before, position
        found += seen
    assert found > 40


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE run SET spec = replace(spec, '"seed":0', '"seed":5')""",
        """UPDATE run SET spec = replace(spec, '"seed":0', '"seed":')""",
        """UPDATE run SET spec = replace(spec, '"0.05"', '"8.05"')""",
        """UPDATE units SET unit = replace(unit, '[0, 1, 2, 3]', '[0, 1, 1, 3]')""",
        "DELETE FROM units WHERE position = 0",
        "DROP TABLE run",
    ],
)
def test_a_spec_or_plan_that_is_not_what_was_stored_is_an_integrity_error(own: Path, change: str) -> None:
    with closing(sqlite3.connect(own / "run.db")) as connection, connection:
        assert connection.execute(change).rowcount != 0
    with pytest.raises(IntegrityError, match=r"run\.db cannot be read"):
        open_run(own)


def test_a_truncated_database_is_an_integrity_error_whatever_is_asked(subject: Subject, own: Path) -> None:
    whole = (own / "run.db").read_bytes()
    lengths = [0, 1, 15, 100, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 1]
    for length in lengths:
        for ask in (
            lambda: Ledger(own).damage(),
            lambda: open_run(own),
            lambda: finish(subject, own),
        ):
            (own / "run.db").write_bytes(whole[:length])
            try:
                answer = ask()
            except IntegrityError as error:
                assert "run.db" in str(error)  # noqa: PT017  (some lengths leave enough to go on)
            else:
                # what is left was enough to name the damage, or to be made good
                assert length > 4096
                assert answer
    (own / "run.db").write_bytes(whole[:4096])
    with pytest.raises(IntegrityError):
        open_run(own)


def test_a_missing_or_broken_file_is_an_integrity_error(own: Path) -> None:
    run = open_run(own)
    (own / "summary.json").write_text("{")
    (own / "neurons.parquet").write_bytes(b"PAR1")
    (own / "targeting.parquet").unlink()
    for read in (lambda: run.summary, lambda: run.neurons, lambda: run.targeting):
        with pytest.raises(IntegrityError, match="cannot be read"):
            read()
