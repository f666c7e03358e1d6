"""Kill runs at random moments and flip random bits of finished ones: is anything lost, is anything missed?

    python tests/faults/torture.py --kills 50 --flips 100 [--output docs/torture.md]

Needs nothing but the package and the small network of the tests. Prints what it found as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import CONTRACT_FILES, finish, small_subject

from fragile_neurons.runs.engines import local
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import FILE, Ledger
from fragile_neurons.runs.subject import Subject

AGAIN = 5  # every so many runs are killed once more while they are resumed
PAGE = """# What a run survives

    make torture

A run of {units} units ({seconds:.1f} s without its start) is killed by SIGKILL at seeded random moments, every
{again}th once more while it is resumed, and then finished. Of a finished run one bit at a time is flipped,
anywhere in the stored results and the exported files.

| what | times | found | lost or missed | same bytes in the end |
| --- | --- | --- | --- | --- |
| killed | {kills} | {interrupted} of them with units left | {recomputed} finished units computed again, at most {in_flight} unit in work lost by a kill | {kills_equal} of {kills} |
| bit flipped in a result | {result_flips} | {result_found} by `verify` | {result_missed} | {result_equal} of {result_flips}, nothing but that unit computed again |
| bit flipped in a file | {file_flips} | {file_found} by `verify` | {file_missed} | {file_equal} of {file_flips}, no unit computed again |
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Write the table there.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject, draw = small_subject(), random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        finished = Path(place) / "finished"
        finish(subject, Path(place) / "first")  # what happens only once in a process
        start = time.perf_counter()
        finish(subject, finished)
        seconds = time.perf_counter() - start
        found = {"units": len(_units(finished)), "seconds": seconds, "again": AGAIN}
        found |= kill(subject, finished, asked.kills, seconds, draw)
        found |= flip(subject, finished, asked.flips, draw)
    print(json.dumps(found))
    if asked.output:
        asked.output.write_text(PAGE.format(**found), encoding="utf-8")


def kill(subject: Subject, finished: Path, times: int, seconds: float, draw: random.Random) -> dict[str, int]:
    """Kill runs of so many seconds, resume them, and compare."""
    interrupted = recomputed = equal = in_flight = 0
    for number in range(times):
        folder = finished.with_name(f"killed {number}")
        for _ in range(2 if number % AGAIN == 0 else 1):
            before = _done(folder)
            begun = _killed(subject, folder, draw.uniform(0, seconds))
            done = _done(folder)
            assert before <= done, "a finished unit is gone"
            in_flight = max(in_flight, begun - len(done - before))
        interrupted += len(done) < len(_units(finished))
        computed = _finished(subject, folder)
        recomputed += len(done & set(computed))
        assert done | set(computed) == _units(finished)
        equal += _same(folder, finished)
        shutil.rmtree(folder)
    return {
        "kills": times,
        "interrupted": interrupted,
        "recomputed": recomputed,
        "in_flight": in_flight,
        "kills_equal": equal,
    }


def flip(subject: Subject, finished: Path, times: int, draw: random.Random) -> dict[str, int]:
    """Flip one bit of a copy at a time: see what is found, and what is made again."""
    with closing(sqlite3.connect(finished / FILE)) as connection:
        rows = connection.execute("SELECT rowid, unit, length(arrays) FROM results").fetchall()
    places: list[tuple[str, int, int]] = [(unit, rowid, size) for rowid, unit, size in rows]
    places += [(name, 0, (finished / name).stat().st_size) for name in sorted(CONTRACT_FILES - {FILE})]
    counts = {
        f"{kind}_{what}": 0 for kind in ("result", "file") for what in ("flips", "found", "equal", "missed")
    }
    for number in range(times):
        # half in the results, which are small, and half in the files
        choice = places[: len(rows)] if number % 2 == 0 else places[len(rows) :]
        ((name, rowid, size),) = draw.choices(choice, [size for _, _, size in choice])
        folder, kind = finished.with_name(f"flipped {number}"), "result" if rowid else "file"
        shutil.copytree(finished, folder)
        _flip(folder, name, rowid, draw.randrange(size), draw.randrange(8))
        with Ledger(folder) as ledger:
            seen = ledger.damage() == [f"{'unit' if rowid else 'file'} {name}"]
        computed = _finished(subject, folder)
        counts[f"{kind}_flips"] += 1
        counts[f"{kind}_found"] += seen
        counts[f"{kind}_missed"] += not seen
        counts[f"{kind}_equal"] += computed == ([name] if rowid else []) and _same(folder, finished)
        shutil.rmtree(folder)
    return counts


def _killed(subject: Subject, folder: Path, after: float) -> int:
    """Go on with a run in a process that is killed after so many seconds; the units that it began."""
    begun = multiprocessing.get_context("fork").Value("i", 0)

    def counted(*arguments: object) -> object:
        begun.value += 1
        return execute_unit(*arguments)  # type: ignore[arg-type]

    process = multiprocessing.get_context("fork").Process(target=_with, args=(counted, subject, folder))
    process.start()
    time.sleep(after)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return int(begun.value)


def _with(execute: object, subject: Subject, folder: Path) -> None:
    local.execute_unit = execute  # type: ignore
    try:
        finish(subject, folder)
    finally:
        local.execute_unit = execute_unit  # type: ignore


def _finished(subject: Subject, folder: Path) -> list[str]:
    """Finish a run; the units that were computed for it."""
    computed: list[str] = []

    def watched(subject: Subject, unit: object, *given: object) -> object:
        computed.append(unit.id)  # type: ignore[attr-defined]
        return execute_unit(subject, unit, *given)  # type: ignore[arg-type]

    _with(watched, subject, folder)
    return computed


def _units(folder: Path) -> set[str]:
    with Ledger(folder) as ledger:
        return {unit.id for unit in ledger.units()}


def _done(folder: Path) -> set[str]:
    """The units with a result, each as it was stored."""
    if not (folder / FILE).exists():
        return set()
    with Ledger(folder) as ledger:
        assert not [one for one in ledger.damage() if one.startswith("unit")], "a kill damaged a result"
        return {unit.id for unit in ledger.units()} - {unit.id for unit in ledger.pending()}


def _same(folder: Path, finished: Path) -> bool:
    names = CONTRACT_FILES - {FILE}
    return all((folder / name).read_bytes() == (finished / name).read_bytes() for name in names)


def _flip(folder: Path, name: str, rowid: int, position: int, bit: int) -> None:
    if not rowid:
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 1 << bit
        (folder / name).write_bytes(content)
        return
    with (
        closing(sqlite3.connect(folder / FILE)) as connection,
        connection,
        connection.blobopen("results", "arrays", rowid) as blob,
    ):
        blob[position] ^= 1 << bit


if __name__ == "__main__":
    main()
