"""Which images a network has right under the attacks that it is chosen and judged by, made anew on it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.attacks.apply import Attack, apply_attack
from fragile_neurons.attacks.autoattack import apgd
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.attacks.pgd import pgd
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.hardening.verdict import BoolArray
from fragile_neurons.losses import cross_entropy_direction, margin_direction
from fragile_neurons.seeds import torch_generator


def untouched(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The images as they are, (epsilons, n, channels, height, width)."""
    return images.expand(len(epsilons), *images.shape)


NONE = (Fraction(0),)
CLEAN, FGSM, PGD, APGD, SHORT_PGD = "clean", "fgsm", "pgd", "apgd", "pgd-10"
ATTACKS: dict[str, Attack] = {
    CLEAN: untouched,
    FGSM: fgsm,
    PGD: partial(pgd, losses=(cross_entropy_direction, margin_direction)),
    APGD: apgd,
    SHORT_PGD: partial(pgd, steps=10, restarts=1),
}
"""The judge's: PGD takes 20 steps and five restarts, which climb cross-entropy and margin by turns."""


def observe_judged(
    judged: Classifier,
    data: ImageData,
    attack: str,
    epsilons: Sequence[Fraction],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    source: Classifier | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """right: (epsilons, n) whether images start to stop are right clean and under attack.

    overshoot: (epsilons, 1) how far the attack's images lay outside ball and [0, 1], before projection.
    source: the network that the attack works on, by default the judged one. All networks start from the same
    random points; later restarts have those of the images that are still right.
    """
    source = source or judged
    stop = len(data) if stop is None else min(stop, len(data))
    parts, overshoot = [], torch.zeros(len(epsilons))
    with evaluating(judged), evaluating(source):
        for batch in batches(data, batch_size, judged.device, start, stop):
            images, labels = batch.images, batch.labels
            generator = torch_generator(seed, f"judging by {attack}", int(batch.positions[0]))
            found = apply_attack(ATTACKS[attack], source, images, labels, epsilons, generator=generator)
            with torch.no_grad():
                clean = judged(images).argmax(dim=1) == labels
                predictions = (
                    found.predictions
                    if source is judged
                    else torch.stack([judged(one).argmax(dim=1) for one in found.images])
                )
            parts.append(((predictions == labels) & clean)[:, : batch.count].cpu().numpy())
            overshoot = overshoot.maximum(found.overshoot.cpu())
    return {"right": np.concatenate(parts, axis=1), "overshoot": overshoot.numpy()[:, None]}


def observe_right(
    judged: Classifier,
    data: ImageData,
    attack: str,
    epsilons: Sequence[Fraction],
    *,
    images: int,
    batch_size: int,
    seed: int,
) -> BoolArray:
    """(epsilons, n) whether each of the first images is right clean and under attack."""
    found = observe_judged(judged, data, attack, epsilons, batch_size=batch_size, seed=seed, stop=images)
    right: BoolArray = found["right"]
    return right
