"""Where a run may write: a new folder, or its own; another run's only when told, anything else never."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fragile_neurons.errors import FragileNeuronsError, InputError
from fragile_neurons.runs.export import FILES
from fragile_neurons.runs.ledger import FILE, Ledger
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.spec import Spec

REPORTS = ("summary.md",)


def open_ledger(folder: Path, spec: Spec, units: Sequence[Unit], *, force: bool) -> Ledger:
    """The ledger of this spec in this folder: continued if it is there, else begun.

    Raises InputError for a folder with another run (unless `force`: its files are removed) or with
    anything else (always).
    """
    if (folder / FILE).is_file():
        ledger = Ledger(folder)
        if not force and ledger.spec == spec:
            return ledger
        differing = [name for name, value in spec if value != getattr(ledger.spec, name)]
        ledger.__exit__()
        if not force:
            raise InputError(
                "the folder holds another run",
                given=f"{folder}, which differs in: {', '.join(differing)}",
                allowed="a new folder, an empty one, or one with the same run",
                fix="choose another --output, or --force to replace that run",
            )
        _remove_run(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "the folder is not a run folder",
            given=folder,
            allowed="a new folder, an empty one, or a run folder; --force replaces run folders only",
            fix="choose another --output",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return Ledger.create(folder, spec, units)


@contextmanager
def readable_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk can do to a run into one message."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise _disk_error(folder, "the disk is full" if full else str(error)) from error
    except sqlite3.OperationalError as error:
        raise _disk_error(folder, str(error)) from error


def _disk_error(folder: Path, reason: str) -> FragileNeuronsError:
    return InputError(
        "the run folder cannot be written",
        given=f"{folder}: {reason}",
        allowed="a folder that can be written, on a disk with room",
        fix="make room or choose another --output; finished units are kept: fragile-neurons resume "
        + str(folder),
    )


def _remove_run(folder: Path) -> None:
    for name in (*FILES, *REPORTS, FILE, f"{FILE}-wal", f"{FILE}-shm"):
        (folder / name).unlink(missing_ok=True)
