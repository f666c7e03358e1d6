"""How many images a network still classifies right when they are attacked, and how small an attack fools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fragile_neurons.analysis.predictions import observe_predictions
from fragile_neurons.analysis.selection import probed
from fragile_neurons.attacks.apply import apply_attack
from fragile_neurons.attacks.catalogue import find_attack
from fragile_neurons.attacks.smallest import smallest_fooling_epsilons
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError
from fragile_neurons.norms import Epsilons, parse_epsilons
from fragile_neurons.seeds import torch_generator
from fragile_neurons.stats import wilson

WORST_CASE = "worst case"


@dataclass(frozen=True)
class Accuracy:
    """A share of images classified right, as a fraction, with its 95 % Wilson interval."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(self.right, self.n)


@dataclass(frozen=True, eq=False)
class Attempts:
    """What one attack did with each image.

    prediction, margin: (epsilons, n), on its images as projected. overshoot: (epsilons, batches), how far
    they lay outside ball or [0, 1] before. forward, backward, rows: (batches,), images that went through
    the network, gradients that came back, images attacked, the filling of a batch included.
    """

    prediction: npt.NDArray[np.int64]
    margin: npt.NDArray[np.float32]
    overshoot: npt.NDArray[np.float32]
    forward: npt.NDArray[np.int64]
    backward: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[Attempts]) -> Attempts:
        """More images."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], -1) for name in names})


def observe_attack(
    classifier: Classifier,
    data: ImageData,
    attack: str,
    epsilons: Sequence[Fraction],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
) -> Attempts:
    """An attack, by name, on images start to stop."""
    method, parts = find_attack(attack), []
    purpose = attack.rpartition("/")[-1]  # the user's file may move
    with evaluating(classifier):
        for batch in batches(data, batch_size, classifier.device, start, stop):
            attacked = apply_attack(
                method,
                classifier,
                batch.images,
                batch.labels,
                epsilons,
                generator=torch_generator(seed, purpose, int(batch.positions[0])),
            )
            parts.append(
                Attempts(
                    prediction=attacked.predictions[:, : batch.count].cpu().numpy(),
                    margin=attacked.margins[:, : batch.count].cpu().numpy(),
                    overshoot=attacked.overshoot[:, None].cpu().numpy(),
                    forward=np.array([attacked.passes.forward]),
                    backward=np.array([attacked.passes.backward]),
                    rows=np.array([len(batch.images)]),
                )
            )
    return Attempts.join(parts)


def observe_smallest(
    classifier: Classifier,
    data: ImageData,
    largest: Fraction,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
) -> npt.NDArray[np.float32]:
    """(n,) the smallest epsilon that fools images start to stop, see smallest_fooling_epsilons."""
    parts = []
    with evaluating(classifier):
        for batch in batches(data, batch_size, classifier.device, start, stop):
            generator = torch_generator(seed, "smallest", int(batch.positions[0]))
            found = smallest_fooling_epsilons(
                classifier, batch.images, batch.labels, float(largest), generator=generator
            )
            parts.append(found[: batch.count].cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class RobustAccuracy:
    """One attack over a grid of budgets.

    right: (epsilons, n) bool, classified right clean and under attack. labels: (n,) positions in `classes`.
    """

    attack: str
    epsilons: tuple[Fraction, ...]
    right: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def at(self, position: int, label: int | None = None) -> Accuracy:
        """The accuracy at one budget of the grid, over all images or those of one class."""
        right = self.right[position] if label is None else self.right[position, self.labels == label]
        return Accuracy(int(right.sum()), len(right))

    def to_table(self) -> pa.Table:
        """Columns attack, epsilon, group (all or class:NAME), value, n, low, high."""
        groups: dict[str, int | None] = {"all": None}
        groups |= {f"class:{self.classes[label]}": int(label) for label in np.unique(self.labels)}
        rows = []
        for position, epsilon in enumerate(self.epsilons):
            for group, label in groups.items():
                accuracy = self.at(position, label)
                low, high = accuracy.ci95
                rows.append((self.attack, float(epsilon), group, accuracy.value, accuracy.n, low, high))
        names = ["attack", "epsilon", "group", "value", "n", "low", "high"]
        return pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))


def worst_case(curves: Sequence[RobustAccuracy]) -> RobustAccuracy:
    """Right only where no attack fools the network: the worst of each image, never a mean of attacks."""
    first = curves[0]
    right = np.logical_and.reduce([curve.right for curve in curves])
    return RobustAccuracy(WORST_CASE, first.epsilons, right, first.labels, first.classes)


def robust_accuracy(
    classifier: Classifier,
    data: ImageData,
    *,
    attack: str = "fgsm",
    epsilons: Epsilons,
    batch_size: int = 256,
    seed: int = 0,
) -> RobustAccuracy:
    """The accuracy of a classifier under an attack of the given name, at each budget of a grid."""
    grid = parse_epsilons(epsilons)
    if not grid:
        raise InputError(
            "there is no epsilon",
            given=repr(epsilons),
            allowed="at least one; 0 is clean",
            fix="e.g. [0, 0.1]",
        )
    probed(classifier, data)
    found = observe_attack(classifier, data, attack, grid, batch_size=batch_size, seed=seed)
    clean = observe_predictions(classifier, data, (), batch_size=batch_size).right
    right = np.equal(found.prediction, data.labels) & clean
    return RobustAccuracy(attack, grid, right, data.labels, data.classes)
