"""The flagged checks: what does not stop an analysis, but decides how far its numbers can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from fragile_neurons.attacks.autoattack import INSTALL
from fragile_neurons.evidence import GIVEN, LABEL, Arrays
from fragile_neurons.probe import Check
from fragile_neurons.questions import IMAGES_PER_CLASS, QUESTIONS
from fragile_neurons.stats import mcnemar

TIMES_CHANCE = 2
SURE = 0.001  # p from which another reading or order of classes counts, over all that were tried
RATIO = (0.5, 2.0)
Bools = npt.NDArray[np.bool_]


def check_inputs(observed: Arrays, gradients: Arrays, classes: tuple[str, ...]) -> tuple[Check, ...]:
    """Whether the network sees the images as it was trained to, and its gradient can be trusted."""
    label = observed[LABEL]
    right = {name: values == label for name, values in observed.items() if name != LABEL}
    ratio = gradients["ratio"][~np.isnan(gradients["ratio"])]
    odd = float(((ratio < RATIO[0]) | (ratio > RATIO[1])).mean()) if len(ratio) else None
    images = f"of {len(label)} images"
    return (
        _ask("pixel range", float(gradients["overshoot"].max())),
        _above_chance(right[GIVEN], len(classes)),
        _normalisation(right, len(classes)),
        _class_order(observed[GIVEN], label, classes),
        _ask("zero gradient", float(gradients["zero"].mean()), images),
        _ask("gradient", odd, "" if odd is None else f"of {len(ratio)} images"),
        _ask("equal logits", float(gradients["equal"].mean()) if len(classes) > 2 else None),
        _ask("epsilon 0", float(gradients["moved"].mean()), images),
    )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an evaluation is judged by.

    reported, worst: (epsilons, n) bool, right under each attack and in the worst case. overshoot: how far
    each attack left its budget. clean: (checked,) right without attack. held: (epsilons, checked) right
    under each of the attacks that are held against each other, at the epsilons above 0; unbounded:
    (1, checked).
    """

    reported: Mapping[str, Bools]
    worst: Bools
    overshoot: Mapping[str, float]
    clean: Bools
    held: Mapping[str, Bools]
    unbounded: Bools
    classes: int


def check_attacks(evidence: Evidence) -> tuple[Check, ...]:
    """Whether the attacks are as strong as attacks on this network can be expected to be."""
    least = np.min([right.mean(axis=1) for right in evidence.reported.values()], axis=0)
    worst = evidence.worst.mean(axis=1)
    outside = max(evidence.overshoot, key=lambda name: evidence.overshoot[name])
    held, applies = evidence.held, bool(evidence.clean.mean() >= enough(evidence.classes))
    images = f"of {len(evidence.clean)} images"

    def compare(name: str, larger: str, smaller: str) -> Check:
        """The largest difference of accuracy over the epsilons."""
        if not applies or not len(held[larger]):
            return _ask(name, None)
        gaps = held[larger].mean(axis=1) - held[smaller].mean(axis=1)
        return _ask(name, float(gaps.max()), images)

    both = [held[name].mean(axis=1) for name in ("PGD", "PGD, margin")]
    lost = ~held["PGD, one restart"] & held["PGD"]
    any_held = applies and bool(len(held["PGD"]))
    stronger = None
    if any_held:
        strong = held["PGD, strong"]
        reported = evidence.worst[-len(strong) :, : strong.shape[1]]  # epsilons above 0 come last
        stronger = float((reported.mean(axis=1) - strong.mean(axis=1)).max())
    return (
        _ask("budget and bounds", evidence.overshoot[outside], outside),
        _ask("worst case", float((worst - least).max()) if len(evidence.reported) > 1 else None),
        _ask("rising accuracy", float(np.diff(worst).max()) if len(worst) > 1 else None),
        _ask("stronger attack", stronger, "" if stronger is None else images),
        compare("PGD and FGSM", "PGD", "FGSM"),
        _ask(
            "unbounded PGD", float(evidence.unbounded.mean()) if applies else None, images if applies else ""
        ),
        compare("steps", "PGD", "PGD, twice the steps"),
        _ask("restarts", float(lost.mean(axis=1).max()) if any_held else None),
        compare("Square", "PGD", "Square")
        if "Square" in held
        else _ask("Square", None, f"pyautoattack is not installed: {INSTALL}"),
        compare("transferred", "PGD", "transferred"),
        compare("noise", "PGD", "noise"),
        _ask("losses", float(np.abs(both[0] - both[1]).max()) if any_held else None),
        compare("temperature", "PGD", "PGD, tempered"),
    )


def _ask(name: str, value: float | None, told: str = "", *, sure: bool = True) -> Check:
    return QUESTIONS[name].answer(value, told, sure=sure)


def _above_chance(right: Bools, classes: int) -> Check:
    accuracy = float(right.mean())
    told = f"{100 * accuracy:.1f} % right of {len(right)} images, chance is {100 / classes:.3g} %"
    return _ask("above chance", enough(classes) - accuracy, told)


def enough(classes: int) -> float:
    """Twice chance; of two classes, where that would be everything, halfway from chance to 1."""
    return min(TIMES_CHANCE / classes, (1 + 1 / classes) / 2)


def _normalisation(right: dict[str, Bools], classes: int) -> Check:
    given = right[GIVEN]
    others = {name: values for name, values in right.items() if name != GIVEN}
    gain, best = max((float(values.mean() - given.mean()), name) for name, values in others.items())
    lost, gained = int((given & ~others[best]).sum()), int((others[best] & ~given).sum())
    # chance is better than a network whose classes are in another order
    sure = float(mcnemar(lost, gained)) * len(others) <= SURE and others[best].mean() >= enough(classes)
    told = (
        f"the network is right on {100 * others[best].mean():.0f} % of {len(given)} images {best}, "
        f"on {100 * given.mean():.0f} % as given"
    )
    if sure and gain > QUESTIONS["normalisation"].warn:
        told = f"{told}: {_REMEDIES.get(best, _GIVE_IT)}"
    return _ask("normalisation", gain, told, sure=sure)


def _class_order(predicted: npt.NDArray[Any], label: npt.NDArray[Any], classes: Sequence[str]) -> Check:
    if len(label) < IMAGES_PER_CLASS * len(classes):
        return _ask("class order", None)
    # an order found on one half is judged on the other, or chance alone would look like one; every
    # class is in both, also where the images come class by class or by turns
    halves = np.empty(len(label), np.int64)
    halves[np.argsort(label, kind="stable")] = np.arange(len(label)) % 2
    renamed = np.empty_like(predicted)
    for half in (0, 1):
        renamed[halves == half] = _best_order(predicted, label, halves != half, len(classes))[
            predicted[halves == half]
        ]
    given, reordered = predicted == label, renamed == label
    gain = float(reordered.mean() - given.mean())
    p = float(mcnemar(int((given & ~reordered).sum()), int((reordered & ~given).sum())))
    sure = p <= SURE and reordered.mean() >= enough(len(classes))
    if not sure or gain <= QUESTIONS["class order"].warn:
        return _ask("class order", gain, "no other order of the classes fits the outputs better", sure=sure)
    order = _best_order(predicted, label, np.ones(len(label), bool), len(classes))
    moved = [f"output {row} is {classes[to]!r}" for row, to in enumerate(order) if row != to]
    shown = ", ".join([*moved[:4], *["..."][: len(moved) - 4]])
    return _ask(
        "class order",
        gain,
        f"the classes seem to be in another order ({shown}): {100 * reordered.mean():.0f} % right instead of "
        f"{100 * given.mean():.0f} %",
    )


def _best_order(
    predicted: npt.NDArray[Any], label: npt.NDArray[Any], rows: Bools, classes: int
) -> npt.NDArray[np.int64]:
    """For each output the class that it is, by the assignment with the most images right."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predicted[rows], label[rows]), 1)
    order: npt.NDArray[np.int64] = linear_sum_assignment(-counts)[1]
    return order


_REMEDIES = {
    "without it": "the network normalises by itself; leave mean and std out",
    "of values 0 to 255": "it was trained on 0 to 255; give --mean 0 --std 0.00392156862745098 per channel",
}
_GIVE_IT = "give these as --mean and --std"
