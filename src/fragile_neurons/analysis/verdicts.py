"""From paired flips of predictions to a verdict on each neuron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.stats import benjamini_hochberg, mcnemar, tango
from fragile_neurons.sweeps.observed import Dropped

RULES = ("tested", "below-mean")
VERDICTS = ("fragile", "robust", "antifragile", "null", "undecided")
SIGNIFICANT = 0.05
NULL_MOVE = 1e-5  # of the largest logit
FEWEST = 30  # right, and wrong, images at the baseline of an adversarial verdict
ZERO_GRADIENT_CHANGE = 0.01

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """How a verdict is reached: `tested` (with its tolerance, a fraction) or `below-mean`.

    tested: significance by an exact McNemar test, Benjamini-Hochberg within layer and condition.
    below-mean (our reading of a simpler rule): fragile where the accuracy without the neuron lies
    below the mean of its layer, else robust.
    """

    name: str = "tested"
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_choice("verdict rule", self.name, RULES)
        if not 0 < self.tolerance < 1:
            raise InputError(
                "the tolerance is out of range",
                given=self.tolerance,
                allowed="above 0 and below 1, as a fraction; 1pp is 0.01",
                fix="leave it at 1pp, or choose a larger one for few images",
            )


@dataclass(frozen=True, eq=False)
class Drops:
    """One condition, clean or one epsilon; all arrays (neurons,).

    drop: accuracy lost, a fraction; low, high: its 95 % interval (Tango). lost, gained: images.
    q: empty (nan) for null neurons. small: significant, yet surely within the tolerance.
    needed: about how many images would decide an undecided neuron, nan for the others.
    """

    drop: Array
    low: Array
    high: Array
    lost: Array
    gained: Array
    q: Array
    verdict: Array
    small: Array
    needed: Array

    def columns(self) -> dict[str, Array]:
        """By the names of neurons.csv, less the prefix of the condition."""
        return dict(vars(self))

    @classmethod
    def empty(cls, neurons: int) -> Drops:
        """What there is to say of a condition that was not measured."""
        nothing = np.full(neurons, np.nan)
        names = ("drop", "low", "high", "lost", "gained", "q", "verdict", "small", "needed")
        return cls(
            **{name: np.full(neurons, None) if name in ("verdict", "small") else nothing for name in names}
        )


def judge_clean(right: Array, dropped: Dropped, predictions: Predictions, layers: Array, rule: Rule) -> Drops:
    """Verdicts on clean images."""
    null = _unmoved(dropped.clean_move, predictions)
    return _judge(right, dropped.clean_right, null, np.zeros(len(null), dtype=bool), layers, rule)


def judge_adversarial(
    right: Array,
    without: Array,
    dropped: Dropped,
    row: int,
    predictions: Predictions,
    layers: Array,
    rule: Rule,
    *,
    mode: str,
) -> Drops:
    """Verdicts under attack at one epsilon; none in mode transfer, whose drops are biased downwards."""
    null = _unmoved(np.maximum(dropped.clean_move, dropped.transfer_move[row]), predictions)
    few = min(right.sum(), (~right).sum()) < FEWEST
    blinded = (
        abs(dropped.zero_gradient.mean(axis=0) - predictions.zero_gradient.mean()) > ZERO_GRADIENT_CHANGE
    )
    drops = _judge(right, without, null, blinded | few, layers, rule)
    if mode == "adaptive":
        return drops
    none = Drops.empty(len(null))
    return Drops(
        **{**drops.columns(), **{name: getattr(none, name) for name in ("q", "verdict", "small", "needed")}}
    )


def _unmoved(moves: Array, predictions: Predictions) -> npt.NDArray[np.bool_]:
    largest = float(predictions.largest_logit.max())
    unmoved: npt.NDArray[np.bool_] = moves.max(axis=0) <= NULL_MOVE * largest
    return unmoved


def _judge(right: Array, without: Array, null: Array, withheld: Array, layers: Array, rule: Rule) -> Drops:
    n = len(right)
    lost, gained = (right & ~without).sum(axis=0), (~right & without).sum(axis=0)
    drop = (lost - gained) / n
    pairs = list(zip(lost.tolist(), gained.tolist(), strict=True))
    low, high = np.array([tango(*pair, n) for pair in pairs]).T
    p = np.array([mcnemar(*pair) for pair in pairs])
    q = np.full(len(drop), np.nan)
    below_mean = np.zeros(len(drop), dtype=bool)
    for layer in np.unique(layers):
        tested = (layers == layer) & ~null
        if tested.any():
            q[tested] = benjamini_hochberg(p[tested])
        net = (lost - gained)[layers == layer]  # whole numbers, so that ties stay ties
        below_mean[layers == layer] = net * len(net) > net.sum()
    significant = q <= SIGNIFICANT
    inside = (low > -rule.tolerance) & (high < rule.tolerance)
    if rule.name == "below-mean":
        conditions = [null, withheld, below_mean]
        verdict = np.select(conditions, ["null", "undecided", "fragile"], default="robust")
    else:
        conditions = [null, withheld, significant & (drop > 0), significant & (drop < 0), inside]
        names = ["null", "undecided", "fragile", "antifragile", "robust"]
        verdict = np.select(conditions, names, default="undecided")
    small = significant & inside & np.isin(verdict, ["fragile", "antifragile"])
    needed = np.where(
        (verdict == "undecided") & ~withheld, _images_to_decide(drop, low, high, n, rule.tolerance), np.nan
    )
    return Drops(drop, low, high, lost, gained, q, verdict, small, needed)


def _images_to_decide(drop: Array, low: Array, high: Array, n: int, tolerance: float) -> Array:
    """About how many images shrink the interval into the tolerance, or off zero, whichever is fewer."""
    half = (high - low) / 2
    room = np.maximum(tolerance - np.abs(drop), 1e-9)
    distance = np.maximum(np.abs(drop), 1e-9)
    images = np.ceil(n * np.minimum(half / room, half / distance) ** 2)
    return np.asarray(np.maximum(images, n + 1))  # the interval alone may decide, q does not
