"""The one caller of attacks: it trusts nothing they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch

from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.attacks.pgd import pgd
from fragile_neurons.classifier import Classifier
from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.losses import margins
from fragile_neurons.norms import project


class Attack(Protocol):
    """Adversarial images (epsilons, n, channels, height, width) for images in [0, 1]."""

    def __call__(
        self,
        classifier: Classifier,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor: ...


ATTACKS: dict[str, Attack] = {"fgsm": fgsm, "pgd": pgd}


@dataclass(frozen=True)
class Attacked:
    """What an attack did: images (epsilons, n, c, h, w); predictions and margins (epsilons, n)."""

    images: torch.Tensor
    predictions: torch.Tensor
    margins: torch.Tensor


def find_attack(name: str) -> Attack:
    """The attack of this name; an InputError that lists all names otherwise."""
    check_choice("attack", name, ATTACKS)
    return ATTACKS[name]


def apply_attack(
    attack: Attack,
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> Attacked:
    """Run an attack; project into ball and pixel range; judge its images by a pass of their own.

    Raises InputError where the attack returns another shape or values that are not finite.
    """
    found = attack(classifier, images, labels, epsilons, generator=generator)
    if found.shape != (len(epsilons), *images.shape) or not torch.isfinite(found).all():
        raise InputError(
            "the attack returned unusable images",
            given=f"shape {tuple(found.shape)}, finite: {bool(torch.isfinite(found).all())}",
            allowed=f"finite images of shape {(len(epsilons), *images.shape)}",
            fix="correct the attack",
        )
    projected = torch.stack(
        [project(one, images, epsilon) for one, epsilon in zip(found, epsilons, strict=True)]
    )
    with torch.no_grad():
        logits = torch.stack([classifier(one) for one in projected])
    return Attacked(
        images=projected,
        predictions=logits.argmax(dim=2),
        margins=margins(logits, labels),
    )
