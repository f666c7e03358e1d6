"""The whole network on one batch, clean and under FGSM: what every drop is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from fragile_neurons.attacks.fgsm import gradient_sign
from fragile_neurons.classifier import Network
from fragile_neurons.norms import perturb


@dataclass(frozen=True)
class Baseline:
    """logits: (n, classes). zero_gradient: (n,) bool, the attack has no direction on the image.

    adversarial: (epsilons, *images); adversarial_logits: (epsilons, n, classes).
    """

    logits: torch.Tensor
    zero_gradient: torch.Tensor
    adversarial: torch.Tensor
    adversarial_logits: torch.Tensor


def measure_baseline(
    classifier: Network, images: torch.Tensor, labels: torch.Tensor, epsilons: Sequence[Fraction]
) -> Baseline:
    """One pass forward and back, and one forward pass for each epsilon; without any, one forward pass."""
    if not epsilons:
        with torch.no_grad():
            logits = classifier(images)
        blind = torch.zeros_like(labels, dtype=torch.bool)
        return Baseline(logits, blind, images.new_empty(0, *images.shape), logits.new_empty(0, *logits.shape))
    logits, sign = gradient_sign(classifier, images, labels)
    adversarial = [perturb(images, sign, epsilon) for epsilon in epsilons]
    with torch.no_grad():
        adversarial_logits = [classifier(attacked) for attacked in adversarial]
    return Baseline(
        logits=logits,
        zero_gradient=(sign == 0).flatten(1).all(dim=1),
        adversarial=torch.stack(adversarial),
        adversarial_logits=torch.stack(adversarial_logits),
    )
