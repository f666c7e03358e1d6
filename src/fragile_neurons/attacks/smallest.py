"""How small a perturbation fools: for each image the smallest epsilon, by bisection."""

from __future__ import annotations

import torch

from fragile_neurons.attacks.pgd import descend, step_sizes
from fragile_neurons.attacks.search import Search
from fragile_neurons.classifier import Classifier
from fragile_neurons.losses import margin_direction

HALVINGS = 8
STEPS = 20


def smallest_fooling_epsilons(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    largest: float,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """(n,) float32: an image within this distance fools; 0 where none is needed, nan above `largest`.

    An upper bound, as every attack gives: PGD on the margin in balls between the largest that resisted
    and the distance of the closest image that fooled, until they are largest / 2^8 apart.
    """
    resisted = torch.zeros(len(images), device=images.device)
    fooled = torch.full_like(resisted, torch.nan)
    radius = torch.full_like(resisted, largest)
    rows = torch.arange(len(images), device=images.device)
    for _ in range(1 + HALVINGS):
        search = Search(classifier, images[rows], labels[rows])
        descend(
            classifier,
            images[rows],
            labels[rows],
            radius[rows].view(-1, 1, 1, 1),
            search,
            margin_direction,
            step_sizes(STEPS, None, decay=False),
            True,
            generator,
        )
        distance = (search.worst - images[rows]).abs().flatten(1).amax(dim=1)
        hit = torch.ones(len(rows), dtype=torch.bool, device=images.device)
        hit[search.rows] = False
        fooled[rows[hit]] = distance[hit]
        resisted[rows[~hit]] = radius[rows[~hit]]
        radius = (resisted + fooled) / 2
        rows = (fooled - resisted > largest / 2**HALVINGS).nonzero().squeeze(1)
        if not len(rows):
            break
    return fooled
