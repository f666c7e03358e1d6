"""Patching: which neurons carry the attack, each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fragile_neurons.analysis.dropout import open_sweeps
from fragile_neurons.analysis.predictions import Predictions, observe_predictions
from fragile_neurons.analysis.selection import Selection, neuron_table, select
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.images import ImageData
from fragile_neurons.neurons import Neuron
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.stats import wilson
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.observed import Patched

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Patching:
    """Which neurons carry the attack; (epsilons, neurons), fractions with 95 % Wilson intervals.

    rescue: of the fooled images, those right again when the neuron alone has its clean map in the
    adversarial pass. inject: of the images right clean, those wrong when it alone has its adversarial
    map in the clean pass. fooled, right: (epsilons,) how many images these are. Empty (nan) where
    there are none, at epsilon 0, and in a layer that a pass calls more than once.
    """

    neurons: tuple[Neuron, ...]
    epsilons: tuple[Fraction, ...]
    fooled: Array
    right: Array
    rescue: Array
    rescue_low: Array
    rescue_high: Array
    inject: Array
    inject_low: Array
    inject_high: Array

    def to_table(self) -> pa.Table:
        """A row per neuron and epsilon, columns as in neurons.csv."""
        names = [f"{what}{bound}" for what in ("rescue", "inject") for bound in ("", "_low", "_high")]
        return neuron_table(self.neurons, self.epsilons, {name: getattr(self, name) for name in names})


def summarise_patching(
    selection: Selection,
    predictions: Predictions,
    patched: dict[str, Patched],
    epsilons: Sequence[Fraction],
) -> Patching:
    """Shares and intervals from what was observed on all images, by layer."""
    attacked = np.array([epsilon > 0 for epsilon in epsilons], dtype=bool)
    fooled = (predictions.right & ~predictions.adv_right).sum(axis=1) * attacked
    right = np.repeat(predictions.right.sum(), len(epsilons)) * attacked
    columns: dict[str, Array] = {}
    for what, field, of in (("rescue", "rescued", fooled), ("inject", "broken", right)):
        counts = np.concatenate(
            [
                getattr(patched[layer.name], field).sum(axis=1)
                if layer.name in patched
                else np.full((len(epsilons), len(selection.channels(layer))), -1)
                for layer in selection.layers
            ],
            axis=1,
        )
        known = (counts >= 0) & (of[:, None] > 0)
        shares = np.full((3, *counts.shape), np.nan)
        for row, column in zip(*np.nonzero(known), strict=True):
            count, n = int(counts[row, column]), int(of[row])
            shares[:, row, column] = count / n, *wilson(count, n)
        columns |= {what: shares[0], f"{what}_low": shares[1], f"{what}_high": shares[2]}
    return Patching(selection.neurons, tuple(epsilons), fooled, right, **columns)


def patching(
    classifier: Classifier,
    data: ImageData,
    *,
    layer: str = "first",
    neurons: str | Sequence[str] = "all",
    site: str = "conv",
    epsilons: Sequence[str | float | Fraction],
    sweep: str = "auto",
    batch_size: int = 256,
    seed: int = 0,
) -> Patching:
    """Give each chosen neuron in turn its map from the other side of an FGSM attack."""
    grid = parse_epsilons(epsilons)
    selection = select(classifier, data, layer=layer, neurons=neurons, site=site, seed=seed)
    way = choose_way(classifier, selection.sites, selection.images, sweep).way
    predictions = observe_predictions(classifier, data, grid, batch_size=batch_size)
    parts: dict[str, list[Patched]] = {one.name: [] for one in selection.layers if one.calls == 1}
    with evaluating(classifier):
        opened = open_sweeps(way, classifier, data, selection.sites, grid, batch_size=batch_size)
        for batch, count in opened:
            for one in selection.layers:
                if one.name in parts:
                    found = batch.patch(one.site(site), selection.channels(one))
                    parts[one.name].append(found.first_images(count))
    patched = {name: Patched.join_images(found) for name, found in parts.items()}
    return summarise_patching(selection, predictions, patched, grid)
