"""Projected gradient descent (Madry et al. 2018) in the L-infinity ball."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from fragile_neurons.attacks.fgsm import gradient_sign
from fragile_neurons.classifier import Classifier
from fragile_neurons.losses import margins
from fragile_neurons.norms import project


def pgd(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 5,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Adversarial images (epsilons, n, channels, height, width), worst per image over the restarts.

    step_size: in units of epsilon, 2.5 / steps by default. Each restart begins at a uniformly random
    point of the ball and attacks only the images that are still classified right.
    """
    step_size = 2.5 / steps if step_size is None else step_size
    grid = []
    for epsilon in epsilons:
        worst = images.clone()
        right = torch.arange(len(images), device=images.device)
        for _ in range(restarts):
            start, truth = images[right], labels[right]
            noise = torch.rand(start.shape, generator=generator, device="cpu").to(start.device) * 2 - 1
            found = project(start + float(epsilon) * noise, start, epsilon)
            for _ in range(steps):
                _, sign = gradient_sign(classifier, found, truth)
                found = project(found + step_size * float(epsilon) * sign, start, epsilon)
            worst[right] = found
            with torch.no_grad():
                right = right[margins(classifier(found), truth) > 0]
            if not len(right):
                break
        grid.append(worst)
    return torch.stack(grid)
