"""run.db: what was asked, the units, and their results; one transaction is one unit done."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from fragile_neurons.errors import InputError, IntegrityError
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.spec import Spec

FILE = "run.db"
SCHEMA = """
CREATE TABLE run (spec TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE units (position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, unit TEXT NOT NULL);
CREATE TABLE results (unit TEXT PRIMARY KEY, arrays BLOB NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE files (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
"""

Arrays = dict[str, npt.NDArray[Any]]


class Ledger:
    """The database of one run folder; a context manager that closes it."""

    def __init__(self, folder: Path) -> None:
        """Open a run; raises InputError where there is none, IntegrityError where it is broken."""
        self.folder = folder
        if not (folder / FILE).is_file():
            raise InputError(
                "this is not a run folder",
                given=folder,
                allowed=f"a folder with a {FILE}, made by fragile-neurons analyze",
                fix="check the path",
            )
        self._connection = sqlite3.connect(folder / FILE, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self.spec = Spec.model_validate_json(self._one("SELECT spec FROM run"))
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            self._connection.close()
            raise IntegrityError(f"{folder / FILE} cannot be read: {error}") from None

    @classmethod
    def create(cls, folder: Path, spec: Spec, units: Sequence[Unit]) -> Ledger:
        """Begin a run in a folder that has none; the file appears whole or not at all."""
        partial = folder / f".{FILE}.partial"
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as connection, connection:
            connection.executescript(SCHEMA)
            connection.execute("INSERT INTO run VALUES (?, ?)", (spec.to_json(), spec.digest))
            rows = [(position, unit.id, json.dumps(unit.to_dict())) for position, unit in enumerate(units)]
            connection.executemany("INSERT INTO units VALUES (?, ?, ?)", rows)
        partial.replace(folder / FILE)
        return cls(folder)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def units(self) -> list[Unit]:
        """All units in the order of the plan."""
        rows = self._connection.execute("SELECT unit FROM units ORDER BY position").fetchall()
        return [_unit(row[0]) for row in rows]

    def pending(self) -> list[Unit]:
        """The units without a result, in the order of the plan."""
        rows = self._connection.execute(
            "SELECT unit FROM units WHERE id NOT IN (SELECT unit FROM results) ORDER BY position"
        ).fetchall()
        return [_unit(row[0]) for row in rows]

    def record(self, unit: Unit, arrays: Arrays) -> None:
        """Store a unit's result; from here on it is never computed again."""
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (unit.id, content, _sha256(content))
            )

    def result(self, unit: Unit) -> Arrays:
        """A stored result; raises IntegrityError where it is not what was stored."""
        content, sha256 = self._connection.execute(
            "SELECT arrays, sha256 FROM results WHERE unit = ?", (unit.id,)
        ).fetchone()
        if _sha256(content) != sha256:
            raise IntegrityError(f"the result of the unit '{unit.id}' in {self.folder / FILE} is damaged")
        return load(content)

    def record_files(self, names: Sequence[str]) -> None:
        """Remember the checksums of exported files."""
        with self._transaction():
            self._connection.execute("DELETE FROM files")
            rows = [(name, _sha256((self.folder / name).read_bytes())) for name in names]
            self._connection.executemany("INSERT INTO files VALUES (?, ?)", rows)

    @property
    def is_exported(self) -> bool:
        """Whether every file of the run was written."""
        return bool(self._one("SELECT COUNT(*) FROM files"))

    def damage(self) -> list[str]:
        """What is not as it was written: units by id, files by name."""
        found = []
        for unit in self.units():
            try:
                if self._one("SELECT COUNT(*) FROM results WHERE unit = ?", unit.id):
                    self.result(unit)
            except (IntegrityError, sqlite3.DatabaseError):
                found.append(f"unit {unit.id}")
        for name, sha256 in self._connection.execute("SELECT name, sha256 FROM files").fetchall():
            path = self.folder / name
            if not path.is_file() or _sha256(path.read_bytes()) != sha256:
                found.append(f"file {name}")
        return found

    def _one(self, query: str, *parameters: object) -> Any:
        return self._connection.execute(query, parameters).fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _unit(text: str) -> Unit:
    fields = json.loads(text)
    return Unit(**{**fields, "channels": tuple(fields["channels"])})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
