"""The one caller of attacks: it trusts nothing they return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.errors import InputError
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


@dataclass
class Passes:
    """Images that went through the network, and gradients that came back."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Attacked:
    """What an attack did: images (epsilons, n, c, h, w); predictions and margins (epsilons, n).

    overshoot: (epsilons,) how far its images lay outside the ball or [0, 1], at most, before they were
    projected. passes: what it took, without the pass that judges.
    """

    images: torch.Tensor
    predictions: torch.Tensor
    margins: torch.Tensor
    overshoot: torch.Tensor
    passes: Passes


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

    Raises InputError where the attack changes what it was given, or returns another shape or values that
    are not finite.
    """
    given, truth = images.clone(), labels.clone()
    with counting(classifier) as passes:
        found = attack(classifier, given, truth, epsilons, generator=generator)
    if not (torch.equal(given, images) and torch.equal(truth, labels)):
        raise unusable(
            "the attack changed what it was given", "other images or labels", "an attack that works on copies"
        )
    shape = (len(epsilons), *images.shape)
    if not isinstance(found, torch.Tensor) or found.shape != shape:
        returned = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise unusable("the attack returned another shape", returned, f"images of shape {shape}")
    if not torch.isfinite(found).all():
        count = int((~torch.isfinite(found)).sum())
        raise unusable(
            "the attack returned images that are not finite", f"{count} NaN or infinite pixels", "pixels"
        )
    found = found.detach().to(images)
    projected = torch.stack(
        [project(one, images, epsilon) for one, epsilon in zip(found, epsilons, strict=True)]
    )
    with torch.no_grad():
        logits = torch.stack([classifier(one) for one in projected])
    if not torch.isfinite(logits).all():
        raise InputError(
            "the network's logits are not finite",
            given=f"NaN or infinite for {int((~torch.isfinite(logits)).any(dim=2).sum())} attacked images",
            allowed="finite logits: a NaN would look like an answer",
            fix="look in the network for a square root, logarithm or division at 0",
        )
    return Attacked(
        images=projected,
        predictions=logits.argmax(dim=2),
        margins=margins(logits, labels),
        overshoot=(found - projected).abs().flatten(1).amax(dim=1),
        passes=passes,
    )


@contextmanager
def counting(classifier: Classifier) -> Iterator[Passes]:
    """Count the images that pass the classifier inside the block, forward and back."""
    passes = Passes()

    def back(gradient: torch.Tensor) -> None:
        passes.backward += len(gradient)

    def forth(_module: object, _inputs: object, logits: torch.Tensor) -> None:
        passes.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(back)  # type: ignore[no-untyped-call]

    handle = classifier.register_forward_hook(forth)
    try:
        yield passes
    finally:
        handle.remove()


def unusable(problem: str, given: object, allowed: str) -> InputError:
    """What to raise of an attack that cannot be used."""
    return InputError(problem, given=given, allowed=allowed, fix="correct the attack, see docs/attacks.md")
