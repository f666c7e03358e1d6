"""Flagged checks: what does not stop an analysis, but decides how far its numbers can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.probe import Check
from fragile_neurons.stats import mcnemar

CHECKED_IMAGES = 256
CHECKED_BATCH = 64
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BETTER = 0.05  # gain of accuracy, as a fraction, from which another reading of the inputs is flagged
SURE = 0.001  # p from which it is, over all readings tried
TIMES_CHANCE = 2
REORDERED = 0.2  # gain of accuracy from which classes in another order are flagged
IMAGES_PER_CLASS = 5
LABEL, GIVEN = "label", "as given"

Arrays = dict[str, npt.NDArray[Any]]


def observe_inputs(classifier: Classifier, data: ImageData, *, images: int) -> Arrays:
    """What the network says of the first images as given, and of the same under other normalisations."""
    found: dict[str, list[npt.NDArray[Any]]] = {}
    with evaluating(classifier), torch.no_grad():
        pixels = data[:images][0].to(classifier.device)
        readings = _readings(classifier, pixels)
        for batch in batches(data, CHECKED_BATCH, classifier.device, 0, images):
            found.setdefault(LABEL, []).append(batch.labels[: batch.count].cpu().numpy())
            for name, (mean, std) in readings.items():
                with _normalised(classifier, mean, std):
                    predicted = classifier(batch.images)[: batch.count].argmax(-1)
                found.setdefault(name, []).append(predicted.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def check_inputs(observed: Arrays, classes: tuple[str, ...]) -> tuple[Check, ...]:
    """Whether the network sees these images and classes as it was trained to."""
    label = observed[LABEL]
    right = {name: values == label for name, values in observed.items() if name != LABEL}
    return (
        _above_chance(right[GIVEN], len(classes)),
        _normalisation(right, len(classes)),
        _class_order(observed[GIVEN], label, classes),
    )


def _above_chance(right: npt.NDArray[np.bool_], classes: int) -> Check:
    accuracy, needed = float(right.mean()), _enough(classes)
    if accuracy >= needed:
        return Check("above chance", "pass", accuracy, f"clean accuracy on {len(right)} images")
    return Check(
        "above chance",
        "warn",
        accuracy,
        f"clean accuracy on {len(right)} images is below {needed:.3g}, and chance is {1 / classes:.3g}: "
        "nothing here says much about a trained network; check the weights, the normalisation and the order "
        "of the classes",
    )


def _enough(classes: int) -> float:
    """Twice chance; of two classes, where that would be everything, halfway from chance to 1."""
    return min(TIMES_CHANCE / classes, (1 + 1 / classes) / 2)


def _normalisation(right: dict[str, npt.NDArray[np.bool_]], classes: int) -> Check:
    given = right[GIVEN]
    others = {name: values for name, values in right.items() if name != GIVEN}
    gain, best = max((float(values.mean() - given.mean()), name) for name, values in others.items())
    lost, gained = int((given & ~others[best]).sum()), int((others[best] & ~given).sum())
    sure = float(mcnemar(lost, gained)) * len(others) <= SURE
    # chance is better than a network whose classes are in another order
    if gain < BETTER or not sure or others[best].mean() < _enough(classes):
        return Check(
            "normalisation", "pass", gain, "no other normalisation makes the network right on more images"
        )
    return Check(
        "normalisation",
        "fail",
        gain,
        f"the network is right on {100 * others[best].mean():.0f} % of {len(given)} images {best}, "
        f"on {100 * given.mean():.0f} % as given: {_REMEDIES.get(best, _GIVE_IT)}",
    )


def _class_order(predicted: npt.NDArray[Any], label: npt.NDArray[Any], classes: tuple[str, ...]) -> Check:
    if len(label) < IMAGES_PER_CLASS * len(classes):
        few = f"does not apply below {IMAGES_PER_CLASS} images per class"
        return Check("class order", "pass", 0.0, few)
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
    if gain < REORDERED or p > SURE or reordered.mean() < _enough(len(classes)):
        return Check("class order", "pass", gain, "no other order of the classes fits the outputs better")
    order = _best_order(predicted, label, np.ones(len(label), bool), len(classes))
    moved = [f"output {row} is {classes[to]!r}" for row, to in enumerate(order) if row != to]
    shown = ", ".join([*moved[:4], *["..."][: len(moved) - 4]])
    return Check(
        "class order",
        "fail",
        gain,
        f"the classes seem to be in another order ({shown}): {100 * reordered.mean():.0f} % right instead of "
        f"{100 * given.mean():.0f} %; order the data's classes as the network has them (folders are sorted)",
    )


def _best_order(
    predicted: npt.NDArray[Any], label: npt.NDArray[Any], rows: npt.NDArray[np.bool_], classes: int
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


def _readings(
    classifier: Classifier, pixels: torch.Tensor
) -> dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Normalisations that networks are trained with; the images' own moments stand for the data set's."""
    channels = pixels.shape[1]

    def of(mean: list[float], std: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
        made = [torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (mean, std)]
        return made[0], made[1]

    own = [getattr(pixels, moment)(dim=(0, 2, 3)) for moment in ("mean", "std")]
    shown = [", ".join(f"{float(value):.4g}" for value in moment) for moment in own]
    readings: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {
        GIVEN: (classifier.mean, classifier.std),
        "of values 0 to 255": of([0.0] * channels, [1 / 255] * channels),
        "with mean 0.5 and std 0.5": of([0.5] * channels, [0.5] * channels),
        f"with mean {shown[0]} and std {shown[1]}": of(own[0].tolist(), own[1].clamp(min=1e-3).tolist()),
    }
    if classifier.mean is not None:
        readings["without it"] = (None, None)
    if channels == len(IMAGENET[0]):
        mean, std = IMAGENET
        readings[f"with ImageNet's mean {mean} and std {std}"] = of(list(mean), list(std))
    return readings


@contextmanager
def _normalised(
    classifier: Classifier, mean: torch.Tensor | None, std: torch.Tensor | None
) -> Iterator[None]:
    kept = classifier.mean, classifier.std
    classifier.mean, classifier.std = mean, std
    try:
        yield
    finally:
        classifier.mean, classifier.std = kept
