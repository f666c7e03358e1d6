"""A run folder, opened for reading."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv, parquet

from fragile_neurons.errors import IncompleteError, IntegrityError
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.spec import Spec, make_spec

REPORT = "report.html"


@dataclass(frozen=True)
class Run:
    """A finished run: its summary and its tables, read from the folder when asked for."""

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json."""
        try:
            summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{self.folder / 'summary.json'} cannot be read: {error}") from None
        return summary

    @property
    def command(self) -> str:
        """What made the run: analyze, evaluate or harden."""
        return str(self.summary["spec"]["command"])

    @cached_property
    def spec(self) -> Spec:
        """What was asked and found."""
        return make_spec(**self.summary["spec"])

    @cached_property
    def neurons(self) -> pa.Table:
        """A row per neuron and epsilon."""
        return self._table("neurons")

    @cached_property
    def targeting(self) -> pa.Table:
        """A row per group of images, neuron and epsilon."""
        return self._table("targeting")

    @cached_property
    def cumulative(self) -> pa.Table:
        """A row per layer, epsilon, order, draw and number of neurons dropped."""
        return self._table("cumulative")

    @cached_property
    def images(self) -> pa.Table:
        """A row per image and epsilon."""
        return self._table("images")

    @property
    def hardened_weights(self) -> Path:
        """After `harden`: the state dict as safetensors, for the network's own class."""
        return self.folder / "hardened.safetensors"

    @cached_property
    def judgement(self) -> pa.Table:
        """After `harden`: a row per network, attack and epsilon."""
        return self._table("judgement")

    @cached_property
    def gains(self) -> pa.Table:
        """After `harden`: a row per channel."""
        path = self.folder / "gains.csv"
        try:
            types = {"layer": pa.string(), "site": pa.string()}
            return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
        except (OSError, pa.ArrowException) as error:
            raise IntegrityError(f"{path} cannot be read: {error}") from None

    @cached_property
    def examples(self) -> dict[str, npt.NDArray[Any]]:
        """The contents of examples.npz, see observe_examples; empty for a run that was made without."""
        path = self.folder / "examples.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, BadZipFile) as error:
            raise IntegrityError(f"{path} cannot be read: {error}") from None

    def _table(self, name: str) -> pa.Table:
        try:
            return parquet.read_table(self.folder / f"{name}.parquet")
        except (OSError, pa.ArrowException) as error:
            raise IntegrityError(f"{self.folder / name}.parquet cannot be read: {error}") from None


def open_run(folder: str | Path) -> Run:
    """A finished run; raises InputError for another folder, IncompleteError for an unfinished run."""
    path = Path(folder)
    with Ledger(path) as ledger:
        left = len(ledger.pending())
        if left or not ledger.is_exported:
            raise IncompleteError(
                f"the run in {path} is not finished: {left} of {len(ledger.units())} units are left\n"
                f"  fix:     fragile-neurons resume {path}"
            )
    return Run(path)


def open_intact_run(folder: str | Path) -> Run:
    """The same, to show what it holds: raises IntegrityError where a file is not as it was written."""
    run = open_run(folder)
    with Ledger(run.folder) as ledger:
        damaged = [name for name in ledger.damaged_files() if name != REPORT]
    if damaged:
        raise IntegrityError(
            f"{run.folder} is damaged: {', '.join(damaged)}\n"
            f"  fix:     fragile-neurons resume {run.folder} makes these again, and only these"
        )
    return run
