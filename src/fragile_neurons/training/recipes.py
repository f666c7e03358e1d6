"""What `train` does for a model: the loss, and the schedule that its bundled weights were made with."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch.nn import functional

from fragile_neurons.attacks.pgd import ascend
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.dataset import Dataset
from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.training.loop import Loss, Schedule

SHIFT = 4
ADVERSARIAL_STEPS = 7


LONG = Schedule(epochs=30, optimizer="SGD", peak_learning_rate=0.2, weight_decay=5e-4)
SHORT = Schedule(epochs=8)


def make_schedule(
    dataset: Dataset,
    *,
    epochs: int | None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    seed: int,
) -> Schedule:
    """What reaches a good accuracy in few epochs: longer and by SGD where images are augmented.

    optimizer, learning_rate (its peak): others. Raises InputError for an unknown optimizer, or a rate that
    is not positive.
    """
    usual = LONG if dataset.mirrors else SHORT
    recipes = {recipe.optimizer: recipe for recipe in (SHORT, LONG)}
    optimizer = usual.optimizer if optimizer is None else optimizer
    check_choice("optimizer", optimizer, recipes)
    recipe = recipes[optimizer]
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise InputError(
            "the learning rate is not a positive number",
            given=learning_rate,
            allowed="above 0",
            fix="such as 0.01",
        )
    return replace(
        recipe,
        epochs=epochs or usual.epochs,
        peak_learning_rate=learning_rate or recipe.peak_learning_rate,
        seed=seed,
    )


def crop_and_mirror(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image shifted by up to four pixels over black, every second one mirrored."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (SHIFT,) * 4)
    tops, lefts = torch.randint(0, 2 * SHIFT + 1, (2, count), generator=generator).tolist()
    cropped = torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )
    mirrored = torch.rand(count, generator=generator).lt(0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def augmented(loss: Loss) -> Loss:
    """The same loss on shifted and mirrored images."""

    def of_augmented(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return loss(crop_and_mirror(images, generator), labels, generator)

    return of_augmented


def standard_loss(classifier: Classifier) -> Loss:
    """Cross-entropy on the images."""

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return functional.cross_entropy(classifier(images), labels)

    return loss


def adversarial_loss(classifier: Classifier, epsilon: Fraction) -> Loss:
    """Cross-entropy on PGD images made anew at every step (Madry et al. 2018)."""

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        with evaluating(classifier):
            attacked = ascend(
                classifier, images, labels, epsilon, steps=ADVERSARIAL_STEPS, generator=generator
            )
        return functional.cross_entropy(classifier(attacked), labels)

    return loss
