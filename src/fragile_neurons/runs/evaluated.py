"""From the stored arrays of `evaluate` to what it has to say."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.robustness import Attempts, RobustAccuracy, worst_case
from fragile_neurons.evidence import UNBOUNDED, Arrays
from fragile_neurons.honesty import Evidence, check_attacks, check_inputs
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.probe import Check
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.subject import Subject


@dataclass(frozen=True)
class Cost:
    """Passes through the network that an attack took, per image, for the whole grid of epsilons."""

    attack: str
    forward: float
    backward: float


@dataclass(frozen=True)
class Evaluation:
    """Everything `evaluate` has to say; smallest: (n,) the smallest epsilon that fools, nan if none does."""

    predictions: Predictions
    attempts: dict[str, Attempts]
    curves: tuple[RobustAccuracy, ...]
    worst: RobustAccuracy
    smallest: npt.NDArray[np.float64]
    costs: tuple[Cost, ...]
    checks: tuple[Check, ...]

    @property
    def median(self) -> float:
        """Over the images right clean, of the smallest epsilon that fools; nan if most resist them all."""
        smallest = self.smallest[self.predictions.right]
        middle = float(np.median(np.where(np.isnan(smallest), np.inf, smallest))) if len(smallest) else np.inf
        return middle if np.isfinite(middle) else np.nan


def collect_evaluation(subject: Subject, ledger: Ledger) -> Evaluation:
    """Join the units' arrays and judge them."""
    epsilons, classes = parse_epsilons(subject.spec.epsilons), subject.data.classes
    stored: dict[tuple[str, str], list[Arrays]] = defaultdict(list)
    for unit in ledger.units():
        stored[unit.kind, unit.attack].append(ledger.result(unit))
    predictions = Predictions.join([Predictions(**arrays) for arrays in stored["predictions", ""]])
    attempts = {
        name: Attempts.join([Attempts(**arrays) for arrays in parts])
        for (kind, name), parts in stored.items()
        if kind == "attack"
    }
    curves = tuple(
        RobustAccuracy(
            name,
            epsilons,
            np.equal(one.prediction, predictions.label) & predictions.right,
            predictions.label,
            classes,
        )
        for name, one in attempts.items()
    )
    worst = worst_case(curves)
    held = {name: parts[0]["right"] for (kind, name), parts in stored.items() if kind == "condition"}
    unbounded = held.pop(UNBOUNDED)
    evidence = Evidence(
        reported={curve.attack: curve.right for curve in curves},
        worst=worst.right,
        overshoot={name: float(one.overshoot.max()) for name, one in attempts.items()},
        clean=predictions.right[: unbounded.shape[1]],
        held=held,
        unbounded=unbounded,
        classes=len(classes),
    )
    return Evaluation(
        predictions=predictions,
        attempts=attempts,
        curves=curves,
        worst=worst,
        smallest=_smallest(
            np.concatenate([arrays["smallest"] for arrays in stored["smallest", ""]]),
            predictions.right,
            worst.right,
            epsilons,
        ),
        costs=tuple(
            Cost(name, one.forward.sum() / one.rows.sum(), one.backward.sum() / one.rows.sum())
            for name, one in attempts.items()
        ),
        checks=(
            *subject.selection.checks,
            *check_inputs(stored["inputs", ""][0], stored["gradients", ""][0], classes),
            *check_attacks(evidence),
        ),
    )


def _smallest(
    bisected: npt.NDArray[np.float32],
    right: npt.NDArray[np.bool_],
    worst: npt.NDArray[np.bool_],
    epsilons: tuple[Fraction, ...],
) -> npt.NDArray[np.float64]:
    """The lesser of what bisection found and the smallest of the grid at which any attack fooled."""
    grid = np.array([float(epsilon) for epsilon in epsilons])
    of_grid = np.where(worst, np.nan, grid[:, None])
    smallest = np.fmin(bisected.astype(np.float64), np.fmin.reduce(of_grid, axis=0))
    return np.where(right, smallest, np.nan)
