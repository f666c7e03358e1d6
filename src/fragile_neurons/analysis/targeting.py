"""Adversarial targeting: which neurons an FGSM attack disturbs, and beyond what any change would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fragile_neurons.analysis.disturbance import Disturbances, observe_disturbances
from fragile_neurons.analysis.predictions import Predictions, observe_predictions
from fragile_neurons.analysis.selection import Neurons, Selection, neuron_table, select
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.neurons import Layer, Neuron
from fragile_neurons.norms import Epsilons, parse_epsilons

GROUPED = ("share", "wins", "images")
SMALLEST_SHARE = 1e-6  # below it a ratio of shares means nothing and stays empty

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Targeting:
    """Which neurons FGSM strikes, over the images classified right clean; empty (nan) at epsilon 0.

    The arrays are (epsilons, neurons) but for weight_norm and activation_energy, (neurons,):
    disturbance: mean RMS change of the map. relative: over the channel's clean RMS. share: of the
    layer's disturbance, mean of the images' shares. wins: fraction of images that disturb it most.
    swap_share, noise_share: the same share under the two controls. excess, noise_excess: logarithm
    of share over control share. groups: the share, wins and images of all, fooled, resisted and
    class:NAME. images, undisturbed: in the neuron's layer counted, and left out as nothing moved.
    """

    neurons: tuple[Neuron, ...]
    epsilons: tuple[Fraction, ...]
    disturbance: Array
    relative: Array
    share: Array
    wins: Array
    noise_share: Array
    swap_share: Array
    noise_excess: Array
    excess: Array
    weight_norm: Array
    activation_energy: Array
    groups: dict[str, dict[str, Array]]
    images: Array
    undisturbed: Array

    def to_table(self) -> pa.Table:
        """A row per neuron and epsilon, columns as in neurons.csv."""
        grid = [
            "disturbance",
            "relative",
            "share",
            "wins",
            "noise_share",
            "swap_share",
            "noise_excess",
            "excess",
        ]
        columns = {name: getattr(self, name) for name in grid}
        columns |= {
            name: np.broadcast_to(getattr(self, name), (max(1, len(self.epsilons)), len(self.neurons)))
            for name in ("weight_norm", "activation_energy")
        }
        return neuron_table(self.neurons, self.epsilons, columns)

    def groups_table(self) -> pa.Table:
        """A row per group, neuron and epsilon: layer, channel, epsilon, group, share, wins, images."""
        rows = max(1, len(self.epsilons)) * len(self.neurons)
        tables = [
            neuron_table(self.neurons, self.epsilons, columns).add_column(3, "group", [[name] * rows])
            for name, columns in self.groups.items()
        ]
        return pa.concat_tables(tables)


def summarise_targeting(
    classifier: Classifier,
    selection: Selection,
    classes: Sequence[str],
    predictions: Predictions,
    observed: dict[str, Disturbances],
    epsilons: Sequence[Fraction],
) -> Targeting:
    """The targeting distribution and its controls from what was observed on all images."""
    masks = _groups(predictions, classes, len(epsilons))
    parts = [
        _summarise_layer(classifier, selection, layer, masks, observed[layer.name], epsilons)
        for layer in selection.layers
    ]
    joined = {key: np.concatenate([part[key] for part in parts], axis=-1) for key in parts[0]}
    return Targeting(
        neurons=selection.neurons,
        epsilons=tuple(epsilons),
        groups={name: {key: joined.pop(f"{key} {name}") for key in GROUPED} for name in masks},
        **joined,
    )


def _summarise_layer(
    classifier: Classifier,
    selection: Selection,
    layer: Layer,
    masks: dict[str, npt.NDArray[np.bool_]],
    observed: Disturbances,
    epsilons: Sequence[Fraction],
) -> dict[str, Array]:
    shares = image_shares(observed)
    moved = _moved(observed)
    chosen = selection.channels(layer)
    columns: dict[str, Array] = {}
    for name, mask in masks.items():
        counted = mask & moved
        columns[f"share {name}"] = _mean(shares, counted)[:, chosen]
        most = shares.argmax(axis=-1)[..., None] == np.arange(layer.channels)
        columns[f"wins {name}"] = _mean(most, counted)[:, chosen]
        columns[f"images {name}"] = np.repeat(counted.sum(axis=1)[:, None], len(chosen), axis=1)
    counted = masks["all"] & moved
    energy = observed.energy.astype(np.float64).mean(axis=0)
    disturbance = _mean(observed.disturbance, counted)
    share = _mean(shares, counted)
    swap = _mean(observed.swap_share, counted & swap_counted(observed))
    noise = _mean(observed.noise_share, counted)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(energy > 0, disturbance / np.sqrt(energy), np.nan)
    weight = classifier.module.get_submodule(layer.name).weight
    assert isinstance(weight, torch.Tensor)
    norm = weight.detach().flatten(1).double().norm(dim=1).cpu().numpy()
    columns |= {
        "disturbance": disturbance[:, chosen],
        "relative": relative[:, chosen],
        "share": share[:, chosen],
        "wins": columns["wins all"],
        "noise_share": noise[:, chosen],
        "swap_share": swap[:, chosen],
        "noise_excess": excess(share, noise)[:, chosen],
        "excess": excess(share, swap)[:, chosen],
        "weight_norm": norm[chosen],
        "activation_energy": energy[chosen],
        "images": columns["images all"],
        "undisturbed": np.repeat((masks["all"] & ~moved).sum(axis=1)[:, None], len(chosen), axis=1),
    }
    unperturbed = np.array([epsilon == 0 for epsilon in epsilons], dtype=np.bool_)
    for column in columns.values():
        if column.ndim == 2:
            column[unperturbed] = np.nan if column.dtype.kind == "f" else 0
    return columns


def image_shares(observed: Disturbances) -> Array:
    """(epsilons, n, channels) float64: each channel's share of its layer's disturbance on an image."""
    disturbance = observed.disturbance.astype(np.float64)
    total = disturbance.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(disturbance, total, out=np.zeros_like(disturbance), where=total > 0))


def swap_counted(observed: Disturbances) -> npt.NDArray[np.bool_]:
    """(epsilons, n): another image's perturbation was there, and moved something after clipping."""
    return np.asarray(observed.swapped & observed.swap_share.any(axis=-1))


def excess(share: Array, control: Array) -> Array:
    """log(share / control), empty (nan) where either is below 1e-6."""
    usable = (share >= SMALLEST_SHARE) & (control >= SMALLEST_SHARE)
    return np.asarray(np.log(np.where(usable, share, np.nan) / np.where(usable, control, np.nan)))


def _moved(observed: Disturbances) -> npt.NDArray[np.bool_]:
    return np.asarray(observed.disturbance.any(axis=-1))


def _mean(values: Array, mask: npt.NDArray[np.bool_]) -> Array:
    """Means over the images (axis -2) in a mask (epsilons, n); nan where there is none."""
    weights = mask.astype(np.float64)
    count = weights.sum(axis=1, keepdims=True)
    total = np.einsum("en,enk->ek", weights, values.astype(np.float64))
    return np.asarray(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def _groups(
    predictions: Predictions, classes: Sequence[str], epsilons: int
) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks (epsilons, n) of images classified right clean: all of them, and the parts asked about."""
    right = np.broadcast_to(predictions.right, (epsilons, len(predictions.right)))
    resisted = right & predictions.adv_right
    masks = {"all": right, "fooled": right & ~resisted, "resisted": resisted}
    return masks | {
        f"class:{name}": right & (predictions.label == label) for label, name in enumerate(classes)
    }


def targeting(
    classifier: Classifier,
    data: ImageData,
    *,
    layer: str = "first",
    neurons: Neurons = "all",
    site: str = "conv",
    epsilons: Epsilons,
    batch_size: int = 256,
    seed: int = 0,
) -> Targeting:
    """Which neurons FGSM disturbs at each epsilon, with the swap and the noise control."""
    grid = parse_epsilons(epsilons)
    selection = select(classifier, data, layer=layer, neurons=neurons, site=site, seed=seed)
    predictions = observe_predictions(classifier, data, grid, batch_size=batch_size)
    observed = observe_disturbances(
        classifier, data, selection.layers, site, grid, batch_size=batch_size, seed=seed
    )
    return summarise_targeting(classifier, selection, data.classes, predictions, observed, grid)
