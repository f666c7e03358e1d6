"""Patching: which neurons carry the attack, each alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fragile_neurons.analysis.dropout import open_sweeps
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.selection import Neurons, Selection, neuron_table, select
from fragile_neurons.analysis.staging import Designs, observe_in_stages, pilot_stop
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.images import ImageData
from fragile_neurons.neurons import Neuron
from fragile_neurons.norms import Epsilons, parse_epsilons
from fragile_neurons.stats import sampled_difference, wilson
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.observed import Patched
from fragile_neurons.sweeps.sampling import STANDARD_ERROR
from fragile_neurons.sweeps.sweep import Sweep

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Patching:
    """Which neurons carry the attack; (epsilons, neurons), fractions with 95 % intervals.

    rescue: of the fooled images, those right again when the neuron alone has its clean map in the
    adversarial pass. inject: of the images right clean, those wrong when it alone has its adversarial
    map in the clean pass. fooled, right: (epsilons,) how many images these are. Empty (nan) where
    there are none, at epsilon 0, and in a layer that a pass calls more than once. Intervals are Wilson's,
    of a sampled sweep those of stats.sampled_difference.
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
    shares = np.full((2, 3, len(epsilons), len(selection.neurons)), np.nan)
    layers = np.array([neuron.layer for neuron in selection.neurons])
    for name, observed in patched.items():
        for row in np.flatnonzero(attacked):
            columns = zip(np.flatnonzero(layers == name), range(observed.rescued.shape[-1]), strict=True)
            for place, column in columns:
                for one, what, of in ((0, "rescued", fooled), (1, "broken", right)):
                    heaviest = getattr(observed, f"{what}_heaviest")[row, :, column].max()
                    found = getattr(observed, what)[row, :, column]
                    shares[one, :, row, place] = _share(found[found > 0], int(of[row]), heaviest)
    (rescue, rescue_low, rescue_high), (inject, inject_low, inject_high) = shares
    return Patching(
        neurons=selection.neurons,
        epsilons=tuple(epsilons),
        fooled=fooled,
        right=right,
        rescue=rescue,
        rescue_low=rescue_low,
        rescue_high=rescue_high,
        inject=inject,
        inject_low=inject_low,
        inject_high=inject_high,
    )


def _share(met: Array, n: int, heaviest: float) -> tuple[float, float, float]:
    """A share of n images and its interval, from the weights of those that were met."""
    if not n:
        return np.nan, np.nan, np.nan
    if heaviest == 1:
        return len(met) / n, *wilson(len(met), n)
    met = met.astype(np.float64)
    _, low, high = sampled_difference(met, met[:0], n, heaviest)
    return float(met.sum() / n), max(low, 0.0), high


def patching(
    classifier: Classifier,
    data: ImageData,
    *,
    layer: str = "first",
    neurons: Neurons = "all",
    site: str = "conv",
    epsilons: Epsilons,
    sweep: str = "auto",
    standard_error: float = STANDARD_ERROR,
    batch_size: int = 256,
    seed: int = 0,
) -> Patching:
    """Give each chosen neuron in turn its map from the other side of an FGSM attack."""
    grid = parse_epsilons(epsilons)
    selection = select(classifier, data, layer=layer, neurons=neurons, site=site, seed=seed)
    way = choose_way(classifier, selection.sites, selection.images, sweep).way
    places = [place for place, one in enumerate(selection.neurons) if selection.layer(one.layer).calls == 1]
    chosen = selection.of_neurons(places)

    def opened(start: int, stop: int, designs: Designs) -> Iterator[tuple[Sweep, int]]:
        span = {"batch_size": batch_size, "start": start, "stop": stop}
        return open_sweeps(way, classifier, data, chosen.sites, grid, designs=designs, seed=seed, **span)

    with evaluating(classifier):
        predictions, patched = observe_in_stages(
            chosen,
            opened,
            lambda sweep, one: sweep.patch(one.site(site), chosen.channels(one)),
            {one.name: [0.0] * one.channels for one in chosen.layers},
            grid,
            images=len(data),
            pilot=pilot_stop(len(data), batch_size) if sweep == "sampled" else len(data),
            standard_error=standard_error,
        )
    return summarise_patching(selection, predictions, patched, grid)
