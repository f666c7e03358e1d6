"""Projected gradient descent (Madry et al. 2018) in the L-infinity ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import torch

from fragile_neurons.attacks.fgsm import gradient_sign
from fragile_neurons.attacks.search import Search
from fragile_neurons.classifier import Classifier
from fragile_neurons.losses import Direction, cross_entropy_direction, margin_direction
from fragile_neurons.norms import project

STRIDE = 2.5  # of epsilon, over all steps


def pgd(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    losses: Sequence[Direction] = (cross_entropy_direction,),
    steps: int = 20,
    step_size: float | None = None,
    decay: bool = False,
    restarts: int = 5,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Adversarial images (epsilons, n, channels, height, width), each the worst of all restarts and steps.

    losses: the restarts take them by turns. step_size: in units of epsilon, 2.5 / steps by default;
    with `decay` it falls to 0 along half a cosine. Each restart begins at a uniformly random point of
    the ball, or at the images themselves. An image that is fooled is left alone from then on.
    """
    sizes = step_sizes(steps, step_size, decay)
    grid = []
    for epsilon in epsilons:
        search, radius = Search(classifier, images, labels), ball(images, epsilon)
        for restart in range(restarts):
            loss = losses[restart % len(losses)]
            descend(classifier, images, labels, radius, search, loss, sizes, random_start, generator)
        grid.append(search.worst)
    return torch.stack(grid)


pgd_margin = partial(pgd, losses=(margin_direction,))
"""PGD on the margin (Carlini and Wagner 2017) instead of the cross-entropy."""

pgd_strong = partial(
    pgd, losses=(cross_entropy_direction, margin_direction), steps=100, step_size=1.0, decay=True, restarts=4
)
"""PGD on both, large steps first, then ever smaller ones (our choice of numbers).

Where the loss is rugged within the ball, constant steps leave many more images right.
"""


def step_sizes(steps: int, step_size: float | None, decay: bool) -> list[float]:
    """The size of each step in units of epsilon."""
    size = STRIDE / steps if step_size is None else step_size
    return [size * (1 + math.cos(math.pi * step / steps)) / 2 if decay else size for step in range(steps)]


def descend(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    radius: torch.Tensor,
    search: Search,
    loss: Direction,
    sizes: Sequence[float],
    random_start: bool,
    generator: torch.Generator | None,
) -> None:
    """One restart, on the images that nothing has fooled yet; radius: (n, 1, 1, 1), one for each image."""
    rows = search.rows
    start, truth, reach = images[rows], labels[rows], radius[rows]
    found = random_point(start, reach, generator) if random_start else start
    for size in sizes:
        if not len(rows):
            return
        logits, sign = gradient_sign(classifier, found, truth, loss)
        still = search.meet(rows, found, logits, truth)
        if not still.all():
            rows, start, truth, reach = rows[still], start[still], truth[still], reach[still]
            found, sign = found[still], sign[still]
        found = project(found + size * reach * sign, start, reach)
    if len(rows):
        with torch.no_grad():
            search.meet(rows, found, classifier(found), truth)


def ascend(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: Fraction,
    *,
    steps: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The last images of plain PGD, (n, channels, height, width): what adversarial training learns from.

    It climbs on where `pgd` stops at the first image that fools, which lies close to the boundary.
    """
    reach = ball(images, epsilon)
    found = random_point(images, reach, generator)
    for size in step_sizes(steps, None, decay=False):
        _, sign = gradient_sign(classifier, found, labels)
        found = project(found + size * reach * sign, images, reach)
    return found


def ball(images: torch.Tensor, epsilon: Fraction) -> torch.Tensor:
    """The same radius for all images, (n, 1, 1, 1)."""
    return torch.full((len(images), 1, 1, 1), float(epsilon)).to(images)


def random_point(
    images: torch.Tensor, radius: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """A uniformly random point of each image's ball; drawn on the CPU, the same for every device."""
    noise = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    return project(images + radius * noise, images, radius)
