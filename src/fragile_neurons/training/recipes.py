"""What `train` does for a model: the loss, and the schedule that its bundled weights were made with."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch.nn import functional

from fragile_neurons.attacks.pgd import pgd
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.training.loop import Loss

ADVERSARIAL_STEPS = 7


def standard_loss(classifier: Classifier) -> Loss:
    """Cross-entropy on the images as they are."""

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return functional.cross_entropy(classifier(images), labels)

    return loss


def adversarial_loss(classifier: Classifier, epsilon: Fraction) -> Loss:
    """Cross-entropy on PGD images made anew at every step (Madry et al. 2018)."""

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        with evaluating(classifier):
            attacked = pgd(
                classifier,
                images,
                labels,
                [epsilon],
                steps=ADVERSARIAL_STEPS,
                restarts=1,
                generator=generator,
            )[0]
        return functional.cross_entropy(classifier(attacked), labels)

    return loss
