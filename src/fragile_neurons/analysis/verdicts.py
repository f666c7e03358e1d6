"""From paired flips of predictions to a verdict on each neuron."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.stats import benjamini_hochberg, mcnemar, sampled_difference, tango
from fragile_neurons.sweeps.observed import Dropped

RuleName = Literal["tested", "below-mean"]
RULES = get_args(RuleName)
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
    sampling_se: of the drop, from the pairs that were not asked; nan where all were. Where not, the interval
    is that of stats.sampled_difference, and lost and gained are estimates, rounded.
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
    sampling_se: Array

    def columns(self) -> dict[str, Array]:
        """By the names of neurons.csv, less the prefix of the condition."""
        return dict(vars(self))

    @classmethod
    def empty(cls, neurons: int) -> Drops:
        """What there is to say of a condition that was not measured."""
        nothing = np.full(neurons, np.nan)
        return cls(
            **{
                field.name: np.full(neurons, None) if field.name in ("verdict", "small") else nothing
                for field in fields(cls)
            }
        )


def judge_clean(right: Array, dropped: Dropped, predictions: Predictions, layers: Array, rule: Rule) -> Drops:
    """Verdicts on clean images."""
    null = _unmoved(dropped.clean_move, predictions)
    heaviest = dropped.clean_heaviest.max(axis=0)
    withheld = np.zeros(len(null), dtype=bool)
    return _judge(right, dropped.clean_right, heaviest, null, withheld, layers, rule)


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
    heaviest = (dropped.adv_heaviest if mode == "adaptive" else dropped.transfer_heaviest)[row].max(axis=0)
    drops = _judge(right, without, heaviest, null, blinded | few, layers, rule)
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


def _judge(
    right: Array, without: Array, heaviest: Array, null: Array, withheld: Array, layers: Array, rule: Rule
) -> Drops:
    n = len(right)
    change = right.astype(np.float32) - without
    lost, gained = (np.maximum(side, 0).sum(axis=0, dtype=np.float64) for side in (change, -change))
    drop = (lost - gained) / n
    found = np.array([_test(change[:, neuron], heaviest[neuron]) for neuron in range(len(drop))])
    p, low, high, sampling_se = found.T
    q = np.full(len(drop), np.nan)
    below_mean = np.zeros(len(drop), dtype=bool)
    for layer in np.unique(layers):
        tested = (layers == layer) & ~null
        if tested.any():
            q[tested] = benjamini_hochberg(p[tested])
        net = (lost - gained)[layers == layer]  # whole numbers unless estimated, so that ties stay ties
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
    return Drops(drop, low, high, np.rint(lost), np.rint(gained), q, verdict, small, needed, sampling_se)


def _test(change: Array, heaviest: float) -> tuple[float, float, float, float]:
    """p, the interval and the sampling error of a mean change, from right minus right without the neuron."""
    n = len(change)
    lost, gained = change[change > 0].astype(np.float64), -change[change < 0].astype(np.float64)
    if heaviest == 1:
        return mcnemar(len(lost), len(gained)), *tango(len(lost), len(gained), n), np.nan
    weights = np.concatenate([lost, gained])
    return *sampled_difference(lost, gained, n, heaviest), float(np.sqrt((weights * (weights - 1)).sum()) / n)


def _images_to_decide(drop: Array, low: Array, high: Array, n: int, tolerance: float) -> Array:
    """About how many images shrink the interval into the tolerance, or off zero, whichever is fewer."""
    half = (high - low) / 2
    room = np.maximum(tolerance - np.abs(drop), 1e-9)
    distance = np.maximum(np.abs(drop), 1e-9)
    images = np.ceil(n * np.minimum(half / room, half / distance) ** 2)
    return np.asarray(np.maximum(images, n + 1))  # the interval alone may decide, q does not
