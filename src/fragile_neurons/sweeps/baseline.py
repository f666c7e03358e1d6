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
    """logits: (n, classes). sign: the gradient's, as the images. adversarial: (epsilons, *images)."""

    logits: torch.Tensor
    sign: torch.Tensor
    adversarial: torch.Tensor
    adversarial_logits: torch.Tensor

    @property
    def zero_gradient(self) -> torch.Tensor:
        """(n,) bool: the attack has no direction on this image."""
        return (self.sign == 0).flatten(1).all(dim=1)


def measure_baseline(
    classifier: Network, images: torch.Tensor, labels: torch.Tensor, epsilons: Sequence[Fraction]
) -> Baseline:
    """One pass forward and back, and one forward pass for each epsilon."""
    logits, sign = gradient_sign(classifier, images, labels)
    adversarial = [perturb(images, sign, epsilon) for epsilon in epsilons]
    with torch.no_grad():
        adversarial_logits = [classifier(attacked) for attacked in adversarial]
    return Baseline(
        logits=logits,
        sign=sign,
        adversarial=torch.stack(adversarial) if epsilons else images.new_empty(0, *images.shape),
        adversarial_logits=torch.stack(adversarial_logits)
        if epsilons
        else logits.new_empty(0, *logits.shape),
    )
