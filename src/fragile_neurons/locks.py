"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fragile_neurons.errors import InputError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, against others; the system lets go of it with the process,
    whatever ends that, so no lock is ever stale. Raises InputError where another process holds it.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        _take(place, folder)
        yield
    finally:
        os.close(place)


def _take(place: int, folder: Path) -> None:
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            "another process is at work in the folder",
            given=folder,
            allowed="one process at a time",
            fix="wait for it, or stop it",
        ) from None
