"""Where a run may write: a new folder, or its own; another run's only when told, anything else never."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fragile_neurons.errors import InputError, IntegrityError
from fragile_neurons.runs.environment import difference
from fragile_neurons.runs.export import FILES
from fragile_neurons.runs.ledger import FILE, PARTIAL, Ledger, disk_error
from fragile_neurons.runs.plan import CHECKPOINT, Unit
from fragile_neurons.runs.spec import Spec

REPORTS = ("summary.md", "report.html")


def open_ledger(
    folder: Path, spec: Spec, units: Sequence[Unit], made_in: Mapping[str, str], *, force: bool
) -> Ledger:
    """The ledger of this spec in this folder: continued if it is there, else begun in this environment.

    Raises InputError for a folder with another run (unless `force`: its files are removed) or with
    anything else (always).
    """
    if (folder / FILE).is_file():
        ledger = Ledger(folder)
        if not force and ledger.spec == spec:
            return ledger
        differing = _differing(spec, ledger.spec)
        ledger.__exit__()
        if not force:
            raise InputError(
                "the folder holds another run",
                given=f"{folder}, which differs in: {', '.join(differing)}",
                allowed="a new folder, an empty one, or one with the same run",
                fix="choose another --output, or --force to replace that run",
            )
        _remove_run(folder)
    elif folder.exists() and not _is_empty(folder):
        raise InputError(
            "the folder is not a run folder",
            given=folder,
            allowed="a new folder, an empty one, or a run folder; --force replaces run folders only",
            fix="choose another --output",
        )
    return Ledger.create(folder, spec, units, made_in)


def _differing(asked: Spec, planned: Spec) -> list[str]:
    """The names of the options that differ, and of what was found."""
    names = [name for name, value in asked if name != "found" and value != getattr(planned, name, None)]
    return names + [name for name, value in asked.found or () if value != getattr(planned.found, name, None)]


def refuse_elsewhere(ledger: Ledger, here: Mapping[str, str]) -> None:
    """Raise an InputError where what is left of a run would come out otherwise than where it was begun."""
    begun = ledger.environment  # an older version did not say
    left = ledger.pending() or ledger.damaged_units()
    if begun and left and (differing := difference(begun, here)):
        raise InputError(
            "the run was begun where other numbers come out",
            given=differing,
            allowed="the same versions and the same kind of processor until a run is finished",
            fix="go on where it was begun, or start anew: --force, or another --output",
        )


@contextmanager
def readable_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk can do to a run into one message."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise disk_error(folder, "the disk is full" if full else str(error)) from error
    except sqlite3.OperationalError as error:
        raise disk_error(folder, str(error)) from error
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"{folder / FILE} cannot be used: {error}") from error


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Tell whoever interrupts a run how it goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"finished units are kept, go on with: fragile-neurons resume {folder}")
        raise


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing but what a run leaves that was killed in its first moment."""
    return folder.is_dir() and all(path.name.startswith(PARTIAL) for path in folder.iterdir())


def _remove_run(folder: Path) -> None:
    for name in (*FILES, *REPORTS, FILE, f"{FILE}-wal", f"{FILE}-shm"):
        (folder / name).unlink(missing_ok=True)
    remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Remove what fits have left to go on from: their results are kept, or nobody wants them any more."""
    for path in folder.glob(CHECKPOINT.format("*")):
        path.unlink()
