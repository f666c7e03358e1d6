"""How many images a network still classifies right when they are attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fragile_neurons.attacks.apply import apply_attack
from fragile_neurons.attacks.catalogue import find_attack
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError
from fragile_neurons.losses import margins
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.seeds import torch_generator
from fragile_neurons.stats import wilson
from fragile_neurons.sweeps.baseline import measure_baseline


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
class Predictions:
    """What the whole network says of each image, clean and under FGSM at each epsilon.

    label, prediction: (n,) classes. margin: (n,) true logit minus best other. largest_logit: (n,)
    in magnitude. zero_gradient: (n,) the attack has no direction. adv_*: (epsilons, n).
    """

    label: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    margin: npt.NDArray[np.float32]
    largest_logit: npt.NDArray[np.float32]
    zero_gradient: npt.NDArray[np.bool_]
    adv_prediction: npt.NDArray[np.int64]
    adv_margin: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(n,) classified right clean."""
        return np.equal(self.prediction, self.label)

    @property
    def adv_right(self) -> npt.NDArray[np.bool_]:
        """(epsilons, n) classified right under attack."""
        return np.equal(self.adv_prediction, self.label)

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """More images."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], -1) for name in names})


def observe_predictions(
    classifier: Classifier,
    data: ImageData,
    epsilons: Sequence[Fraction],
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
) -> Predictions:
    """Predictions on images start to stop."""
    parts = []
    with evaluating(classifier):
        for batch in batches(data, batch_size, classifier.device, start, stop):
            measured = measure_baseline(classifier, batch.images, batch.labels, epsilons)
            columns = {
                "label": batch.labels,
                "prediction": measured.logits.argmax(-1),
                "margin": margins(measured.logits, batch.labels),
                "largest_logit": measured.logits.abs().amax(-1),
                "zero_gradient": measured.zero_gradient,
                "adv_prediction": measured.adversarial_logits.argmax(-1),
                "adv_margin": margins(measured.adversarial_logits, batch.labels),
            }
            parts.append(
                Predictions(
                    **{key: value[..., : batch.count].cpu().numpy() for key, value in columns.items()}
                )
            )
    return Predictions.join(parts)


@dataclass(frozen=True, eq=False)
class RobustAccuracy:
    """One attack over a grid of budgets.

    right: (epsilons, n) bool, classified right under attack. labels: (n,) positions in `classes`.
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


def robust_accuracy(
    classifier: Classifier,
    data: ImageData,
    *,
    attack: str = "fgsm",
    epsilons: Sequence[str | float | Fraction],
    batch_size: int = 256,
    seed: int = 0,
) -> RobustAccuracy:
    """The accuracy of a classifier under an attack of the given name, at each budget of a grid."""
    method, grid = find_attack(attack), parse_epsilons(epsilons)
    if not grid:
        raise InputError(
            "there is no epsilon",
            given=list(epsilons),
            allowed="at least one; 0 is clean",
            fix="e.g. [0, 0.1]",
        )
    right = np.zeros((len(grid), len(data)), dtype=np.bool_)
    with evaluating(classifier):
        for batch in batches(data, batch_size, classifier.device):
            attacked = apply_attack(
                method,
                classifier,
                batch.images,
                batch.labels,
                grid,
                generator=torch_generator(seed, attack, int(batch.positions[0])),
            )
            hit = (attacked.predictions == batch.labels).cpu().numpy()
            right[:, batch.positions[: batch.count]] = hit[:, : batch.count]
    return RobustAccuracy(attack, grid, right, data.labels, data.classes)
