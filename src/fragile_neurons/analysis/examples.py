"""What pictures of a run are made of: attacked images, kernels, maps before and after, exciting patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import adaptive_avg_pool2d

from fragile_neurons.analysis.selection import Selection
from fragile_neurons.attacks.apply import apply_attack
from fragile_neurons.attacks.catalogue import find_attack
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import SMALLEST_BATCH, batches
from fragile_neurons.data.images import ImageData, stratified_sample
from fragile_neurons.interventions import record_maps, record_reach
from fragile_neurons.neurons import Layer
from fragile_neurons.seeds import torch_generator

SHOWN_IMAGES, MAPPED_IMAGES, SEARCHED_IMAGES = 60, 12, 512
SIDES = (32, 24, 16)  # pixels, of maps the first and of patches what there is room for; the rest is averaged
MOST_PATCHES, ENOUGH_PATCHES, MOST_PREDICTIONS = 4, 2, 3
ROOM = {"images": 800_000, "kernels": 500_000, "maps": 1_600_000, "patches": 1_000_000}
"""Bytes, together below 4 MB; where not all fits, there are fewer images or patches, or none."""
VALUES_AT_ONCE = 64_000_000
STEPS = 127  # of int8, on either side of 0

Arrays = dict[str, npt.NDArray[Any]]


def observe_examples(
    classifier: Classifier,
    data: ImageData,
    selection: Selection,
    attack: str,
    epsilons: Sequence[Fraction],
    *,
    batch_size: int,
    seed: int,
) -> Arrays:
    """The contents of examples.npz.

    index, label, epsilon (n,), images (n, c, h, w) uint8, perturbation the same in 127ths of epsilon, int8: a
    sample of all classes in their own proportions, fooled, resisted and wrong clean by turns, each at the
    smallest epsilon that fools it, or the largest.
    clean_top, adversarial_top (n, 3) classes and *_probability. By layer, for the chosen channels:
    kernels/LAYER (channels, 1 or 3, h, w), maps/LAYER (m, clean and adversarial, channels, h, w) of the first
    m images: int8 in 127ths of kernel_scale/LAYER, map_scale/LAYER (channels,). patches/LAYER (channels,
    patches, c, h, w) uint8: what the map is highest at, of layers whose kernels are no pictures.
    """
    found: Arrays = {}
    budgets = [epsilon for epsilon in epsilons if epsilon]
    with evaluating(classifier):
        pictured = [layer for layer in selection.layers if _is_picture(layer)]
        for layer in pictured:
            found |= _kernels(classifier, layer, selection.channels(layer))
        if budgets:
            pairs, both = _attacked(classifier, data, attack, budgets, seed)
            found |= pairs | _maps(classifier, selection, both)
        searched = [one for one in selection.layers if one not in pictured and _has_maps(one)]
        return found | _patches(classifier, data, selection, searched, batch_size)


def _is_picture(layer: Layer) -> bool:
    """Whether a kernel of the layer can be shown as a grey or coloured image."""
    shape = layer.weight_shape
    return len(shape) == 4 and shape[1] in (1, 3) and math.prod(shape[2:]) > 1 and layer.kind == "Conv2d"


def _has_maps(layer: Layer) -> bool:
    return len(layer.map_shape) == 2 and layer.calls == 1


def _kernels(classifier: Classifier, layer: Layer, channels: list[int]) -> Arrays:
    weight = classifier.module.get_submodule(layer.name).weight
    assert isinstance(weight, torch.Tensor)
    kernels = weight.detach()[channels].float().cpu()
    if kernels.numel() > ROOM["kernels"]:
        return {}
    values, scale = _quantised(kernels, kernels.abs().amax(dim=(1, 2, 3)), (-1, 1, 1, 1))
    return {f"kernels/{layer.name}": values, f"kernel_scale/{layer.name}": scale}


def _quantised(
    values: torch.Tensor, scale: torch.Tensor, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Values in 127ths of a scale, 0 where that is 0."""
    usable = torch.where(scale > 0, scale, torch.ones_like(scale)).view(shape)
    return (values / usable * STEPS).round().to(torch.int8).cpu().numpy(), scale.float().cpu().numpy()


def _attacked(
    classifier: Classifier, data: ImageData, attack: str, budgets: list[Fraction], seed: int
) -> tuple[Arrays, tuple[torch.Tensor, torch.Tensor]]:
    """The images shown, and clean and adversarial images as they are."""
    bytes_each = 2 * math.prod(data.images.shape[1:])
    count = min(SHOWN_IMAGES, len(data), max(1, ROOM["images"] // bytes_each))
    sample = data.take(stratified_sample(data.labels, count, seed))
    (batch,) = batches(sample, max(count, SMALLEST_BATCH), classifier.device)
    attacked = apply_attack(
        find_attack(attack),
        classifier,
        batch.images,
        batch.labels,
        budgets,
        generator=torch_generator(seed, "examples", 0),
    )
    fooled = attacked.predictions != batch.labels
    place = torch.where(fooled.any(dim=0), fooled.int().argmax(dim=0), len(budgets) - 1)
    adversarial = attacked.images[place, torch.arange(len(place), device=place.device)]
    with torch.no_grad():
        clean_top, clean_probability = _top(classifier(batch.images))
        adversarial_top, adversarial_probability = _top(classifier(adversarial))
    right = clean_top[:, 0] == batch.labels.cpu()
    outcome = torch.where(right, torch.where(fooled.any(dim=0).cpu(), 0, 1), 2)[:count]
    turn = torch.stack([(outcome == one).cumsum(0) for one in range(3)])[outcome, torch.arange(count)]
    order = torch.argsort(3 * turn + outcome)
    budget = torch.tensor([float(epsilon) for epsilon in budgets], dtype=torch.float64)[place.cpu()]
    clean, after = batch.images.cpu()[order], adversarial.cpu()[order]
    change = (after - clean) / budget[order].float().view(-1, 1, 1, 1)
    found = {
        "index": torch.from_numpy(sample.indices)[order],
        "label": batch.labels.cpu()[order],
        "epsilon": budget[order],
        "images": (clean * 255).round().to(torch.uint8),
        "perturbation": (change.clamp(-1, 1) * STEPS).round().to(torch.int8),
        "clean_top": clean_top[order],
        "clean_probability": clean_probability[order],
        "adversarial_top": adversarial_top[order],
        "adversarial_probability": adversarial_probability[order],
    }
    return {name: one.numpy() for name, one in found.items()}, (clean, after)


def _top(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3) classes and their probabilities, the highest first; fewer where there are fewer classes."""
    probability = logits.float().softmax(dim=1).cpu()
    values, classes = probability.topk(min(MOST_PREDICTIONS, logits.shape[1]), dim=1)
    return classes, values


def _maps(classifier: Classifier, selection: Selection, both: tuple[torch.Tensor, torch.Tensor]) -> Arrays:
    """Maps of the first images, clean and adversarial: as many as there is room for."""
    layers = [layer for layer in selection.layers if _has_maps(layer)]
    channels = {layer.name: selection.channels(layer) for layer in layers}
    each = 2 * sum(len(channels[layer.name]) * math.prod(_shown(layer.map_shape)) for layer in layers)
    count = min(MAPPED_IMAGES, len(both[0]), ROOM["maps"] // each if each else 0)
    if not count:
        return {}
    rows = torch.arange(max(count, SMALLEST_BATCH)) % len(both[0])
    sites = [layer.site(selection.site) for layer in layers]
    seen = [record_maps(classifier, sites, images[rows].to(classifier.device)) for images in both]
    found: Arrays = {}
    for layer, *sides in zip(layers, *seen, strict=True):
        chosen = [side[:count, channels[layer.name]].unflatten(2, layer.map_shape) for side in sides]
        maps = torch.stack([adaptive_avg_pool2d(side, _shown(layer.map_shape)) for side in chosen], dim=1)
        values, scale = _quantised(maps, maps.abs().amax(dim=(0, 1, 3, 4)), (1, 1, -1, 1, 1))
        found |= {f"maps/{layer.name}": values, f"map_scale/{layer.name}": scale}
    return found


def _shown(shape: tuple[int, ...], side: int = SIDES[0]) -> tuple[int, int]:
    height, width = (min(size, side) for size in shape)
    return height, width


def _patches(
    classifier: Classifier, data: ImageData, selection: Selection, layers: list[Layer], batch_size: int
) -> Arrays:
    """For each channel the parts of images, one of each, at which its map is highest."""
    channels = {layer.name: selection.channels(layer) for layer in layers}
    colours = data.images.shape[1]
    axes = {layer.name: _reach(classifier, data, selection, layer) for layer in layers}
    side, count = SIDES[0], 0
    for side in SIDES if layers else ():
        shown = {name: math.prod(min(one.extent, side) for one in both) for name, both in axes.items()}
        each = sum(len(channels[name]) * colours * pixels for name, pixels in shown.items())
        count = min(MOST_PATCHES, len(data), ROOM["patches"] // each)
        if count >= ENOUGH_PATCHES:
            break
    if not count:
        return {}
    values = sum(layer.channels * math.prod(layer.map_shape) for layer in layers)
    rows = max(SMALLEST_BATCH, min(batch_size, VALUES_AT_ONCE // values))
    sites = [layer.site(selection.site) for layer in layers]
    highest: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {layer.name: [] for layer in layers}
    for batch in batches(data, rows, classifier.device, 0, min(SEARCHED_IMAGES, len(data))):
        for layer, maps in zip(layers, record_maps(classifier, sites, batch.images), strict=True):
            value, position = maps[: batch.count, channels[layer.name]].max(dim=2)
            highest[layer.name].append((value.cpu(), position.cpu()))
    found: Arrays = {}
    for layer in layers:
        value, position = (torch.cat(parts) for parts in zip(*highest[layer.name], strict=True))
        places = value.topk(min(count, len(value)), dim=0).indices.T  # (channels, patches)
        where = position.T.gather(1, places)
        windows = torch.stack(
            [
                _cut(data, layer, place, spot, axes[layer.name], side)
                for place, spot in zip(places.flatten().tolist(), where.flatten().tolist(), strict=True)
            ]
        )
        found[f"patches/{layer.name}"] = windows.view(*places.shape, *windows.shape[1:]).numpy()
    return found


@dataclass(frozen=True)
class _Axis:
    """What a map sees along one axis of an image: place p sees `extent` pixels from start + p stride on."""

    start: int
    stride: int
    extent: int


def _reach(
    classifier: Classifier, data: ImageData, selection: Selection, layer: Layer
) -> tuple[_Axis, _Axis]:
    """What the layer's maps see of an image, from what two places in their middle do."""
    noise = torch.rand(SMALLEST_BATCH, *data.images.shape[1:], generator=torch_generator(0, "reach", 0))
    images, site = noise.to(classifier.device), layer.site(selection.site)
    places = [max(size // 2 - 1, 0) for size in layer.map_shape], [size // 2 for size in layer.map_shape]
    edges = [_edges(record_reach(classifier, site, images, (row, column))) for row, column in places]
    axes = []
    for axis in (0, 1):
        (low, before), (high, last) = edges[0][axis], edges[1][axis]
        stride, place = max(high - low, last - before), places[1][axis]  # an image's border hides one edge
        axes.append(_Axis(high - place * stride, stride, last - high + 1))
    rows, columns = axes
    return rows, columns


def _edges(seen: torch.Tensor) -> list[tuple[int, int]]:
    """First and last row, first and last column that are seen; all of them where the map is dead."""
    found = []
    for axis in (1, 0):
        places = torch.nonzero(seen.any(dim=axis)).flatten().tolist() or [0, seen.shape[1 - axis] - 1]
        found.append((places[0], places[-1]))
    return found


def _cut(
    data: ImageData, layer: Layer, place: int, spot: int, axes: tuple[_Axis, _Axis], side: int
) -> torch.Tensor:
    """(c, h, w) uint8: what a place of the map sees of an image, moved inside it."""
    (image,), _ = data[place : place + 1]
    top, left = (
        min(max(axis.start + at * axis.stride, 0), pixels - axis.extent)
        for at, axis, pixels in zip(divmod(spot, layer.map_shape[1]), axes, image.shape[1:], strict=True)
    )
    height, width = (axis.extent for axis in axes)
    window = image[:, top : top + height, left : left + width]
    return (adaptive_avg_pool2d(window, _shown((height, width), side)) * 255).round().to(torch.uint8)
