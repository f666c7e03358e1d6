"""Random perturbations: what an attack that uses the network must be stronger than."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

from fragile_neurons.attacks.search import Search
from fragile_neurons.classifier import Classifier
from fragile_neurons.norms import perturb

Draw = Callable[[torch.Tensor], torch.Tensor]


def sign_noise(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    restarts: int = 20,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Plus or minus epsilon at every pixel, (epsilons, n, channels, height, width); the worst draw."""
    return _worst_draw(
        classifier, images, labels, epsilons, restarts, generator, lambda noise: (noise - 0.5).sign()
    )


def uniform_noise(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    restarts: int = 20,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Uniform in the ball, (epsilons, n, channels, height, width); the worst draw."""
    return _worst_draw(classifier, images, labels, epsilons, restarts, generator, lambda noise: 2 * noise - 1)


def _worst_draw(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    restarts: int,
    generator: torch.Generator | None,
    shape: Draw,
) -> torch.Tensor:
    grid = []
    for epsilon in epsilons:
        search = Search(classifier, images, labels)
        for _ in range(restarts):
            rows = search.rows
            if not len(rows):
                break
            start, truth = images[rows], labels[rows]
            noise = shape(torch.rand(start.shape, generator=generator)).to(images)
            candidates = perturb(start, noise, epsilon)
            with torch.no_grad():
                search.meet(rows, candidates, classifier(candidates), truth)
        grid.append(search.worst)
    return torch.stack(grid)
