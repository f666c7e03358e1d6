"""How far FGSM, another image's FGSM and random noise move each channel, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.attacks.fgsm import gradient_sign
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import Batch, batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.interventions import record_maps
from fragile_neurons.neurons import Layer
from fragile_neurons.norms import perturb
from fragile_neurons.seeds import numpy_generator

NOISE_DRAWS = 10

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Disturbances:
    """How far each channel of a layer moves on each image.

    disturbance: (epsilons, n, channels), RMS change of the map under FGSM. swap_share, noise_share:
    (epsilons, n, channels), each channel's share of the disturbance by another image's FGSM
    perturbation, and by random signs (mean over draws). swapped: (n,) whether there was another
    image to take one from. group: (n,) the same number for images that took one another's: their
    position in the data, the first of them. energy: (n, channels), mean square of the clean map.
    """

    disturbance: npt.NDArray[np.float32]
    swap_share: npt.NDArray[np.float32]
    noise_share: npt.NDArray[np.float32]
    swapped: npt.NDArray[np.bool_]
    group: npt.NDArray[np.int64]
    energy: npt.NDArray[np.float32]

    @classmethod
    def join(cls, parts: Sequence[Disturbances]) -> Disturbances:
        """More images."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        return cls(
            **{name: np.concatenate(one, -2 if one[0].ndim > 1 else 0) for name, one in columns.items()}
        )


def observe_disturbances(
    classifier: Classifier,
    data: ImageData,
    layers: Sequence[Layer],
    site: str,
    epsilons: Sequence[Fraction],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
) -> dict[str, Disturbances]:
    """Disturbances of all channels of each layer on images start to stop, by layer name."""
    found: dict[str, list[Disturbances]] = {layer.name: [] for layer in layers}
    with evaluating(classifier):
        for batch in batches(data, batch_size, classifier.device, start, stop):
            for layer, part in zip(
                layers, _observe(classifier, data, layers, site, epsilons, batch, seed), strict=True
            ):
                found[layer.name].append(part)
    return {name: Disturbances.join(parts) for name, parts in found.items()}


def _observe(
    classifier: Classifier,
    data: ImageData,
    layers: Sequence[Layer],
    site: str,
    epsilons: Sequence[Fraction],
    batch: Batch,
    seed: int,
) -> list[Disturbances]:
    sites = [layer.site(site) for layer in layers]
    logits, sign = gradient_sign(classifier, batch.images, batch.labels)
    usable = (logits.argmax(-1) == batch.labels) & (sign != 0).flatten(1).any(dim=1)
    usable[batch.count :] = False  # filling: these images are of other groups, in a batch of their own
    partner, swapped, group = _partners(usable.cpu().numpy(), batch.positions, seed)
    noise = _noise(sign, data, batch, seed)
    clean = record_maps(classifier, sites, batch.images)

    def disturbances(direction: torch.Tensor, epsilon: Fraction) -> list[torch.Tensor]:
        moved = record_maps(classifier, sites, perturb(batch.images, direction, epsilon))
        return [(one - two).square().mean(dim=2).sqrt() for one, two in zip(moved, clean, strict=True)]

    struck, swap, random = [], [], []
    for epsilon in epsilons:
        struck.append(disturbances(sign, epsilon))
        swap.append([_shares(one) for one in disturbances(sign[partner], epsilon)])
        moved = (disturbances(direction * sign.abs(), epsilon) for direction in noise)  # zero where FGSM's is
        draws = [[_shares(one) for one in draw] for draw in moved]
        random.append([torch.stack(draw).mean(dim=0) for draw in zip(*draws, strict=True)])

    def gather(by_epsilon: list[list[torch.Tensor]], position: int) -> Array:
        channels = layers[position].channels
        empty = np.zeros((0, batch.count, channels), np.float32)
        return (
            np.stack([one[position][: batch.count].cpu().numpy() for one in by_epsilon])
            if by_epsilon
            else empty
        )

    return [
        Disturbances(
            disturbance=gather(struck, position),
            swap_share=gather(swap, position),
            noise_share=gather(random, position),
            swapped=swapped[: batch.count],
            group=group[: batch.count],
            energy=clean[position].square().mean(dim=2)[: batch.count].cpu().numpy(),
        )
        for position in range(len(layers))
    ]


def _shares(disturbance: torch.Tensor) -> torch.Tensor:
    """Each row over its sum; a row without any disturbance stays zero."""
    total = disturbance.sum(dim=1, keepdim=True)
    return torch.where(total > 0, disturbance / total, torch.zeros_like(disturbance))


def _partners(
    usable: npt.NDArray[np.bool_], positions: npt.NDArray[np.int64], seed: int
) -> tuple[torch.Tensor, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """For each row another usable one, right and with a gradient; whether there is one; its group.

    Two and two take each other's, drawn by a seed, of an odd number three in a ring: what moves neurons
    whichever image it meets, or an image whatever meets it, then cancels within a group.
    """
    partner, group = np.arange(len(usable)), positions.copy()
    swapped = np.zeros(len(usable), dtype=np.bool_)
    rows = numpy_generator(seed, "swap", int(positions[0])).permutation(np.flatnonzero(usable))
    if len(rows) > 1:
        for members in np.split(rows, range(2, len(rows) - 1, 2)):
            partner[members] = np.roll(members, 1)
            group[members] = positions[members].min()
        swapped[rows] = True
    return torch.from_numpy(partner), swapped, group


def _noise(sign: torch.Tensor, data: ImageData, batch: Batch, seed: int) -> torch.Tensor:
    """(draws, *images) random signs, int8; the draws belong to the image."""
    draws = [
        numpy_generator(seed, "noise", int(index)).integers(
            0, 2, (NOISE_DRAWS, *sign.shape[1:]), dtype=np.int8
        )
        for index in data.indices[batch.positions]
    ]
    return torch.from_numpy(np.stack(draws, axis=1)).to(sign.device) * 2 - 1
