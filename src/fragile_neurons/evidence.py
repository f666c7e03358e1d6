"""What the flagged checks are judged from: small experiments on the first images of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fragile_neurons.attacks.apply import Attack, apply_attack
from fragile_neurons.attacks.autoattack import square
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.attacks.noise import sign_noise
from fragile_neurons.attacks.pgd import pgd, pgd_margin, pgd_strong
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.losses import margin_direction, margins
from fragile_neurons.seeds import torch_generator

CHECKED_IMAGES = 256
ATTACKED_IMAGES = 128
CHECKED_BATCH = 64
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LABEL, GIVEN = "label", "as given"
STEPS_OF_DIFFERENCE = (1e-4, 1e-3)  # in pixels: the smaller is less curved, the larger rounds less
JITTER = 0.02
ROUNDING = 1e-4  # of the largest logit: a smaller change of the margin says nothing
UNBOUNDED = "unbounded PGD"
QUERIES = 1_000
RIDGE = 0.1  # of the mean eigenvalue

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


def observe_gradients(classifier: Classifier, data: ImageData, *, images: int) -> Arrays:
    """How the network answers small changes of the first images, (n,) each.

    overshoot: how far a pixel lies outside [0, 1]. zero: no pixel has a gradient (of the cross-entropy).
    ratio: the margin's change along the sign of its gradient over what the gradient says, central
    differences; nan where rounding hides both. equal: all logits but the largest are equal, of three
    and more. moved: predicted otherwise at epsilon 0.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    with evaluating(classifier):
        for batch in batches(data, CHECKED_BATCH, classifier.device, 0, images):
            pixels, labels = batch.images, batch.labels
            with torch.no_grad():
                logits = classifier(pixels)
            attacked = apply_attack(fgsm, classifier, pixels, labels, [Fraction(0), Fraction(1)])
            others = logits.sort(dim=1).values[:, :-1]
            scale = logits.abs().amax(dim=1)
            equal = (others[:, -1] - others[:, 0] <= 1e-6 * scale) & (logits.shape[1] > 2)
            columns = {
                "overshoot": (pixels - pixels.clamp(0.0, 1.0)).abs().flatten(1).amax(dim=1),
                "zero": (attacked.images[1] == pixels).flatten(1).all(dim=1),
                "ratio": _difference_ratio(classifier, pixels, labels),
                "equal": equal,
                "moved": attacked.predictions[0] != logits.argmax(dim=1),
            }
            for name, values in columns.items():
                parts.setdefault(name, []).append(values[: batch.count].cpu())
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


def _difference_ratio(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(n,) the ratio closest to 1 over the steps of difference."""
    best = torch.full((len(images),), torch.nan, device=images.device)
    # off the kinks: among equal pixels, as on a black ground, every maximum of a pooling is a tie
    generator = torch.Generator().manual_seed(0)
    jitter = JITTER * (torch.rand(images.shape, generator=generator).to(images) - 0.5)
    for step in STEPS_OF_DIFFERENCE:
        leaves = (images.clamp(JITTER, 1 - JITTER) + jitter).requires_grad_(True)
        with torch.enable_grad():
            logits = classifier(leaves)
            (gradient,) = torch.autograd.grad(logits, leaves, margin_direction(logits.detach(), labels))
        with torch.no_grad():
            low, high = (
                margins(classifier(leaves + side * step * gradient.sign()), labels) for side in (1, -1)
            )
            said = 2 * step * gradient.abs().flatten(1).sum(dim=1)
            done = high - low
            least = ROUNDING * logits.abs().amax(dim=1)
            hidden = torch.maximum(said, done.abs()) < least
            ratio = torch.where(hidden, torch.nan, done / said.clamp(min=1e-30))
        closer = best.isnan() | ((ratio - 1).abs() < (best - 1).abs())
        best = torch.where(closer, ratio, best)
    return best


def conditions(data: ImageData) -> dict[str, Attack]:
    """The attacks that are held against each other, at each epsilon; the unbounded one at epsilon 1."""
    return {
        "noise": sign_noise,
        "FGSM": fgsm,
        "PGD": pgd,
        "PGD, one restart": partial(pgd, restarts=1),
        "PGD, twice the steps": partial(pgd, steps=40),
        "PGD, margin": pgd_margin,
        "PGD, strong": partial(pgd_strong, restarts=2),
        "PGD, tempered": tempered_pgd,
        "transferred": partial(transferred, data),
        "Square": partial(square, steps=QUERIES),
        UNBOUNDED: partial(pgd, steps=100, restarts=1),
    }


def observe_condition(
    attack: Attack,
    classifier: Classifier,
    data: ImageData,
    epsilons: Sequence[Fraction],
    *,
    images: int,
    seed: int,
) -> Arrays:
    """Whether each of the first images is right, (epsilons, n); all attacks get the same random numbers."""
    right = np.zeros((len(epsilons), images), np.bool_)
    with evaluating(classifier):
        for batch in batches(data, CHECKED_BATCH, classifier.device, 0, images):
            with torch.no_grad():
                right_clean = classifier(batch.images).argmax(dim=1) == batch.labels
            for row, epsilon in enumerate(epsilons):
                attacked = apply_attack(
                    attack,
                    classifier,
                    batch.images,
                    batch.labels,
                    [epsilon],
                    generator=torch_generator(seed, "checks", int(batch.positions[0])),
                )
                hit = ((attacked.predictions[0] == batch.labels) & right_clean)[: batch.count]
                right[row, batch.positions[: batch.count]] = hit.cpu().numpy()
    return {"right": right}


def tempered_pgd(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """PGD on logits over the median margin, which no network can saturate."""
    with torch.no_grad():
        margin = margins(classifier(images), labels)
    temperature = float(margin[margin > 0].median()) if (margin > 0).any() else 1.0
    return pgd(Classifier(Tempered(classifier, temperature)), images, labels, epsilons, generator=generator)


class Tempered(nn.Module):
    """A classifier whose logits are divided by a temperature."""

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier, self.temperature = classifier, temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(images)
        return logits / self.temperature


def transferred(
    data: ImageData,
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """FGSM on a linear network, fitted to the first images and their labels by ridge regression."""
    pixels, truth = data[:CHECKED_IMAGES]
    flat = pixels.flatten(1).double()
    centred = flat - flat.mean(dim=0)
    wanted = nn.functional.one_hot(truth, len(data.classes)).double()
    kernel = centred @ centred.T
    kernel += RIDGE * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)
    # unlike nn.Linear alone, it draws no random numbers
    linear = nn.utils.skip_init(nn.Linear, flat.shape[1], len(data.classes))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        linear.weight.copy_((centred.T @ torch.linalg.solve(kernel, wanted - wanted.mean(dim=0))).T)
        linear.bias.copy_(wanted.mean(dim=0) - flat.mean(dim=0) @ linear.weight.double().T)
    surrogate = Classifier(nn.Sequential(nn.Flatten(), linear).to(images.device))
    return fgsm(surrogate, images, labels, epsilons)


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
