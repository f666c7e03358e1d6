"""Projected gradient descent (Madry et al. 2018) in the L-infinity ball."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

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
    loss: Direction = cross_entropy_direction,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 5,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Adversarial images (epsilons, n, channels, height, width), each the worst of all restarts and steps.

    step_size: in units of epsilon, 2.5 / steps by default. Each restart begins at a uniformly random
    point of the ball, or at the images themselves. An image that is fooled is left alone from then on.
    """
    step_size = STRIDE / steps if step_size is None else step_size
    grid = []
    for epsilon in epsilons:
        search, radius = (
            Search(classifier, images, labels),
            torch.full((len(images), 1, 1, 1), float(epsilon)),
        )
        radius = radius.to(images)
        for _ in range(restarts):
            descend(
                classifier, images, labels, radius, search, loss, steps, step_size, random_start, generator
            )
        grid.append(search.worst)
    return torch.stack(grid)


def pgd_margin(
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
    """PGD on the margin (Carlini and Wagner 2017) instead of the cross-entropy."""
    return pgd(
        classifier,
        images,
        labels,
        epsilons,
        loss=margin_direction,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        generator=generator,
    )


def descend(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    radius: torch.Tensor,
    search: Search,
    loss: Direction,
    steps: int,
    step_size: float,
    random_start: bool,
    generator: torch.Generator | None,
) -> None:
    """One restart, on the images that nothing has fooled yet; radius: (n, 1, 1, 1), one for each image."""
    rows = search.rows
    start, truth, ball = images[rows], labels[rows], radius[rows]
    found = random_point(start, ball, generator) if random_start else start
    for _ in range(steps):
        if not len(rows):
            return
        logits, sign = gradient_sign(classifier, found, truth, loss)
        still = search.meet(rows, found, logits, truth)
        if not still.all():
            rows, start, truth, ball = rows[still], start[still], truth[still], ball[still]
            found, sign = found[still], sign[still]
        found = project(found + step_size * ball * sign, start, ball)
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
    step_size: float | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The last images of plain PGD, (n, channels, height, width): what adversarial training learns from.

    It climbs on where `pgd` stops at the first image that fools, which lies close to the boundary.
    """
    ball = torch.full((len(images), 1, 1, 1), float(epsilon)).to(images)
    found = random_point(images, ball, generator) if random_start else images
    for _ in range(steps):
        _, sign = gradient_sign(classifier, found, labels)
        found = project(
            found + (STRIDE / steps if step_size is None else step_size) * ball * sign, images, ball
        )
    return found


def random_point(
    images: torch.Tensor, radius: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """A uniformly random point of each image's ball; drawn on the CPU, the same for every device."""
    noise = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    return project(images + radius * noise, images, radius)
