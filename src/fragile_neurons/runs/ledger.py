"""run.db: what was asked, the units, and their results; one transaction is one unit done."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from fragile_neurons.errors import FragileNeuronsError, InputError, IntegrityError
from fragile_neurons.evidence import Arrays
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.spec import Spec, canonical_sha256

FILE = "run.db"
LATER = (
    "CREATE TABLE IF NOT EXISTS environment (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS failures (unit TEXT PRIMARY KEY, reason TEXT NOT NULL)",
)
"""Tables that runs of older versions lack."""
PARTIAL = f".{FILE}.partial"
SCHEMA = """
CREATE TABLE run (spec TEXT NOT NULL, digest TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TABLE units (position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, unit TEXT NOT NULL);
CREATE TABLE results (unit TEXT PRIMARY KEY, arrays BLOB NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE files (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
"""

# what a disk can do, as against a file that is not what it was
DISK_ERRORS = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
)


class Ledger:
    """The database of one run folder; a context manager that closes it."""

    def __init__(self, folder: Path) -> None:
        """Open a run; raises InputError where there is none, IntegrityError where it is broken."""
        self.folder = folder
        if not (folder / FILE).is_file():
            raise InputError(
                "this is not a run folder",
                given=folder,
                allowed=f"a folder with a {FILE}, made by fragile-neurons analyze, evaluate or harden",
                fix="check the path",
            )
        # SQLite keeps no files beside the database only if told that nobody writes there
        wal = folder / f"{FILE}-wal"
        archived = not os.access(folder, os.W_OK) and not (wal.exists() and wal.stat().st_size)
        place = f"{(folder / FILE).absolute().as_uri()}?{'immutable=1' if archived else 'mode=rw'}"
        try:
            self._connection = sqlite3.connect(place, isolation_level=None, uri=True)
        except sqlite3.OperationalError as error:
            raise disk_error(folder, str(error)) from None
        try:
            if not archived:
                self._rows("PRAGMA journal_mode=WAL")
                self._rows("PRAGMA synchronous=FULL")
            self.spec = self._stored_spec()
            for table in () if archived else LATER:
                self._rows(table)
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def create(
        cls, folder: Path, spec: Spec, units: Sequence[Unit], environment: Mapping[str, str]
    ) -> Ledger:
        """Begin a run in a folder that has none; the file appears whole or not at all.

        environment: what decides the last digits of its numbers, by name.
        """
        partial = folder / PARTIAL
        rows = [(position, unit.id, json.dumps(unit.to_dict())) for position, unit in enumerate(units)]
        _remove_partial(folder)
        try:
            with closing(sqlite3.connect(partial)) as connection, connection:
                connection.executescript(";".join((SCHEMA, *LATER)))
                plan = _plan_sha256(text for _, _, text in rows)
                connection.execute("INSERT INTO run VALUES (?, ?, ?)", (spec.to_json(), spec.digest, plan))
                connection.executemany("INSERT INTO environment VALUES (?, ?)", environment.items())
                connection.executemany("INSERT INTO units VALUES (?, ?, ?)", rows)
            partial.replace(folder / FILE)
        finally:
            _remove_partial(folder)
        return cls(folder)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def units(self) -> list[Unit]:
        """All units in the order of the plan."""
        texts = [text for (text,) in self._rows("SELECT unit FROM units ORDER BY position")]
        if _plan_sha256(texts) != self._one("SELECT plan FROM run"):
            raise self._broken("the list of units is not what was stored")
        return [_unit(text) for text in texts]

    def pending(self) -> list[Unit]:
        """The units without a result, in the order of the plan."""
        done = {unit for (unit,) in self._rows("SELECT unit FROM results")}
        return [unit for unit in self.units() if unit.id not in done]

    def record(self, unit: Unit, arrays: Arrays) -> None:
        """Store a unit's result; from here on it is never computed again."""
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (unit.id, content, _sha256(content))
            )
            self._connection.execute("DELETE FROM failures WHERE unit = ?", (unit.id,))

    def record_failure(self, unit: Unit, reason: str) -> None:
        """Remember why a unit has no result; it is computed when the run is resumed."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO failures VALUES (?, ?)", (unit.id, reason))

    @property
    def failures(self) -> dict[str, str]:
        """Why units have no result, by their ids."""
        return self._later("failures")

    @property
    def environment(self) -> dict[str, str]:
        """What the run was begun in; empty for one that an older version began."""
        return self._later("environment")

    def result(self, unit: Unit) -> Arrays:
        """A stored result; raises IntegrityError where it is not what was stored."""
        rows = self._rows("SELECT arrays, sha256 FROM results WHERE unit = ?", unit.id)
        content, sha256 = rows[0] if rows else (b"", "")
        if not isinstance(content, bytes) or _sha256(content) != sha256:
            raise IntegrityError(f"the result of the unit '{unit.id}' in {self.folder / FILE} is damaged")
        return dict(sorted(load(content).items()))  # safetensors gives them in any order

    def record_files(self, names: Iterable[str]) -> None:
        """Remember the checksums of exported files."""
        with self._transaction():
            self._connection.execute("DELETE FROM files")
            rows = [(name, _file_sha256(self.folder / name)) for name in names]
            self._connection.executemany("INSERT INTO files VALUES (?, ?)", rows)

    def record_file(self, name: str) -> None:
        """Remember the checksum of one that was written anew."""
        with self._transaction():
            row = (name, _file_sha256(self.folder / name))
            self._connection.execute("DELETE FROM files WHERE name = ?", (name,))
            self._connection.execute("INSERT INTO files VALUES (?, ?)", row)

    @property
    def is_exported(self) -> bool:
        """Whether every file of the run was written."""
        return bool(self._one("SELECT COUNT(*) FROM files"))

    def damage(self) -> list[str]:
        """What is not as it was written: units by id, files by name; IntegrityError if run.db is broken."""
        if (answer := self._one("PRAGMA integrity_check(1)")) != "ok":
            raise self._broken(answer)
        units = [f"unit {unit.id}" for unit in self.damaged_units()]
        return units + [f"file {name}" for name in self.damaged_files()]

    def forget_damage(self) -> None:
        """Take back what is not as it was written, so that it is made again."""
        units, files = self.damaged_units(), self.damaged_files()
        with self._transaction():
            rows = [(unit.id,) for unit in units]
            self._connection.executemany("DELETE FROM results WHERE unit = ?", rows)
            if units or files:
                self._connection.execute("DELETE FROM files")

    def damaged_units(self) -> list[Unit]:
        """Results that are not what was stored; of a run with all its files also those that are gone."""
        pending = set() if self.is_exported else {unit.id for unit in self.pending()}
        return [unit for unit in self.units() if unit.id not in pending and not self._is_intact(unit)]

    def _is_intact(self, unit: Unit) -> bool:
        try:
            self.result(unit)
        except IntegrityError:
            return False
        return True

    def damaged_files(self) -> list[str]:
        """Exported files that are not as they were written."""
        rows = self._rows("SELECT name, sha256 FROM files")
        return [name for name, sha256 in rows if _file_sha256(self.folder / name) != sha256]

    def _stored_spec(self) -> Spec:
        rows = self._rows("SELECT spec, digest FROM run")
        try:
            ((text, digest),) = rows
            spec = Spec.from_json(text)
        except (ValueError, TypeError, InputError) as error:
            raise self._broken(error) from None
        # of what is stored: a later version may know more options than this run had
        if canonical_sha256(json.loads(text)) != digest:
            raise self._broken("the spec is not what was stored")
        return spec

    def _later(self, table: str) -> dict[str, str]:
        """The pairs in a table of LATER; none where an older version's run cannot be written."""
        there = self._rows("SELECT name FROM sqlite_master WHERE name = ?", table)
        return dict(self._rows(f"SELECT * FROM {table}")) if there else {}

    def _one(self, query: str) -> Any:
        return self._rows(query)[0][0]

    def _rows(self, query: str, *parameters: object) -> list[Any]:
        try:
            return self._connection.execute(query, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in DISK_ERRORS:
                raise disk_error(self.folder, str(error)) from None
            raise self._broken(error) from None

    def _broken(self, reason: object) -> IntegrityError:
        return IntegrityError(
            f"{self.folder / FILE} cannot be read: {reason}\n"
            "  fix:     bring back a copy of the folder, or run again with another --output"
        )

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


def disk_error(folder: Path, reason: str) -> FragileNeuronsError:
    """What to tell of a disk that is full, read-only or failing."""
    return InputError(
        "the run folder cannot be written",
        given=f"{folder}: {reason}",
        allowed="a folder that can be written, on a disk with room",
        fix="make room or choose another --output; finished units are kept: fragile-neurons resume "
        + str(folder),
    )


def _remove_partial(folder: Path) -> None:
    for name in (PARTIAL, f"{PARTIAL}-journal"):
        (folder / name).unlink(missing_ok=True)


def _plan_sha256(units: Iterable[str]) -> str:
    return _sha256("\n".join(units).encode())


def _file_sha256(path: Path) -> str | None:
    return _sha256(path.read_bytes()) if path.is_file() else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
