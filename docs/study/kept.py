"""What the study's committed files hold: the small files of each finished run."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fragile_neurons.split_half import MIN_RELIABILITY

HERE = Path(__file__).parent
NETWORKS = (
    *("mnist-cnn", "mnist-cnn-robust", "cifar10-resnet20", "resnet20"),
    *("resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v3_small"),
)
ATTACKS = {"fgsm": "FGSM", "pgd": "PGD-20 x 5, cross-entropy", "pgd-strong": "PGD-100 x 4, decaying"}
TRAININGS = {
    "seed0": "seed 0",
    "seed1": "seed 1",
    "seed2": "seed 2",
    "adamw": "AdamW",
    "epochs24": "24 epochs",
}
Found = dict[str, Any]
Column = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Kept:
    """The small files of one run."""

    folder: Path

    @cached_property
    def summary(self) -> Found:
        found: Found = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return found

    @property
    def spec(self) -> Found:
        found: Found = self.summary["spec"]
        return found

    @property
    def largest_epsilon(self) -> str:
        found: str = self.spec["epsilons"][-1]
        return found

    @cached_property
    def neurons(self) -> list[Found]:
        """A row per neuron, at the largest epsilon; numbers where there are any."""
        with (self.folder / "neurons.csv").open(newline="", encoding="utf-8") as file:
            rows = [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]
        last = max(row["epsilon"] for row in rows)
        return [row for row in rows if row["epsilon"] == last]

    def column(self, name: str) -> Column:
        """Of the neurons; NaN where there is nothing."""
        return np.array([np.nan if row[name] is None else row[name] for row in self.neurons], dtype=float)

    @property
    def network(self) -> tuple[str, str]:
        """The architecture, bundled or trained here, and its data."""
        return self.spec["model"].removeprefix("cifar10-"), self.spec["data"]

    @property
    def name(self) -> str:
        """The network, which of its trainings where there are several, and its data."""
        network, data = self.network
        trained = Path(self.spec["weights"] or "").parent.name.removeprefix(f"{network}-{data}").lstrip("-")
        if self.spec["model"].startswith("cifar10-"):
            trained = "seed0"
        return ", ".join(filter(None, [network, TRAININGS.get(trained, trained), data]))

    @property
    def place(self) -> tuple[object, ...]:
        """Where its rows stand in a table."""
        spec = self.spec
        which = (spec.get("rule", ""), spec.get("layer", ""))
        network = [*NETWORKS, spec["model"]].index(spec["model"])
        return spec["data"] != "mnist", network, self.name, *which


def _value(text: str | None) -> Any:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


@cache
def _kept(folder: Path) -> Kept:
    return Kept(folder)


def can_be_asked(pair: Found) -> bool:
    """Whether a relation has a rho, and both its sides are measured well enough for it to mean something."""
    reliabilities = (pair["reliability_x"], pair["reliability_y"])
    return pair["spearman"] is not None and all(one and one >= MIN_RELIABILITY for one in reliabilities)


def runs(command: str, **options: object) -> list[Kept]:
    """The runs of a command with these options, in the order of the tables."""
    found = [_kept(path.parent) for path in sorted((HERE / "runs").glob("*/summary.json"))]
    asked = {"command": command, **options}
    return sorted((one for one in found if asked.items() <= one.spec.items()), key=lambda one: one.place)
