"""Does the attack strike the fragile neurons? Correlations over neurons, from disjoint halves of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fragile_neurons.analysis.disturbance import Disturbances, observe_disturbances
from fragile_neurons.analysis.dropout import Dropout, observe_drops, summarise_dropout
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.selection import Neurons, Selection, select
from fragile_neurons.analysis.targeting import (
    Targeting,
    excess,
    image_shares,
    summarise_targeting,
    swap_counted,
)
from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.neurons import Layer
from fragile_neurons.norms import Epsilons, parse_epsilons
from fragile_neurons.seeds import derive_seed
from fragile_neurons.split_half import Correlation, Measure, split_half_correlations
from fragile_neurons.stats import benjamini_hochberg, holm, top_k_precision
from fragile_neurons.sweeps.observed import Dropped
from fragile_neurons.sweeps.sampling import STANDARD_ERROR

# fixed beforehand: the paper's question, and the same with its controls
HEADLINES = (("clean_drop", "share"), ("margin_drop", "excess"))
AIMS = ("share", "excess", "noise_excess", "disturbance")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """One pair of measures at one layer and epsilon.

    adjusted_p: of a headline, Holm over all headlines of the layer; of any other pair, which is
    exploratory, the Benjamini-Hochberg q over these.
    """

    layer: str
    epsilon: Fraction
    headline: bool
    correlation: Correlation
    adjusted_p: float


@dataclass(frozen=True)
class Precision:
    """Of the k most targeted neurons (k = number fragile, clean), the share that is fragile."""

    layer: str
    epsilon: Fraction
    fragile: int
    neurons: int
    precision: float
    p: float


@dataclass(frozen=True)
class Relation:
    """All pairs, headlines first at each layer and epsilon, and the precision of targeted for fragile."""

    pairs: tuple[Pair, ...]
    precisions: tuple[Precision, ...]

    @property
    def headlines(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.headline)

    def to_table(self) -> pa.Table:
        """A row per pair: x, y, layer, epsilon, headline, n, the coefficients, p values and interval."""
        return pa.Table.from_pylist(
            [
                {
                    "layer": pair.layer,
                    "epsilon": float(pair.epsilon),
                    "headline": pair.headline,
                    **{key: _empty_nan(value) for key, value in vars(pair.correlation).items()},
                    "adjusted_p": _empty_nan(pair.adjusted_p),
                }
                for pair in self.pairs
            ]
        )


def summarise_relation(
    selection: Selection,
    predictions: Predictions,
    dropped: Dropped,
    observed: dict[str, Disturbances],
    fragility: Dropout,
    aim: Targeting,
    *,
    seed: int,
) -> Relation:
    """Correlate fragility with targeting, layer by layer, at each epsilon above 0."""
    epsilons = [(row, epsilon) for row, epsilon in enumerate(fragility.epsilons) if epsilon > 0]
    pairs: list[Pair] = []
    precisions: list[Precision] = []
    for layer in selection.layers:
        columns = np.array([neuron.layer == layer.name for neuron in selection.neurons])
        chosen = selection.channels(layer)
        covariates = np.column_stack([aim.weight_norm[columns], aim.activation_energy[columns]])
        found: list[tuple[Fraction, bool, Correlation]] = []
        for row, epsilon in epsilons:
            measures = _fragility_measures(predictions, dropped, columns, row, fragility.mode)
            exploratory = [(x, y) for x in measures for y in AIMS if (x, y) not in HEADLINES]
            measures |= _aim_measures(predictions.right, observed[layer.name], chosen, row)
            asked = [*HEADLINES, *exploratory]
            correlations = split_half_correlations(
                measures,
                asked,
                observed[layer.name].group,
                covariates,
                seed=derive_seed(seed, f"correlation of {layer.name} at {epsilon}"),
            )
            found += [(epsilon, (one.x, one.y) in HEADLINES, one) for one in correlations]
            fragile = fragility.clean.verdict[columns] == "fragile"
            precision, p = top_k_precision(aim.share[row][columns], fragile)
            precisions.append(Precision(layer.name, epsilon, int(fragile.sum()), len(chosen), precision, p))
        pairs += _adjusted(layer, found)
    return Relation(tuple(pairs), tuple(precisions))


def _fragility_measures(
    predictions: Predictions, dropped: Dropped, columns: Array, row: int, mode: str
) -> dict[str, Measure]:
    right, margin = predictions.right[:, None], predictions.margin[:, None]
    measures = {
        "clean_drop": _mean(right.astype(np.int8) - dropped.clean_right[:, columns]),
        "margin_drop": _mean(margin - dropped.clean_margin[:, columns]),
    }
    if mode == "adaptive":
        adv_right, adv_margin = predictions.adv_right[row, :, None], predictions.adv_margin[row, :, None]
        measures["adv_drop"] = _mean(adv_right.astype(np.int8) - dropped.adv_right[row][:, columns])
        measures["adv_margin_drop"] = _mean(adv_margin - dropped.adv_margin[row][:, columns])
    return measures


def _aim_measures(right: Array, observed: Disturbances, chosen: list[int], row: int) -> dict[str, Measure]:
    counted = right & observed.disturbance[row].any(axis=-1)
    share = _mean(image_shares(observed)[row][:, chosen], counted)
    swap = _mean(observed.swap_share[row][:, chosen], counted & swap_counted(observed)[row])
    noise = _mean(observed.noise_share[row][:, chosen], counted)
    return {
        "share": share,
        "excess": lambda weights: excess(share(weights), swap(weights)),
        "noise_excess": lambda weights: excess(share(weights), noise(weights)),
        "disturbance": _mean(observed.disturbance[row][:, chosen], counted),
    }


def _mean(values: Array, counted: Array | None = None) -> Measure:
    """The weighted mean over images of (images, neurons) values, over those counted."""
    columns = values.astype(np.float64)

    def mean(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        of_these = weights if counted is None else weights * counted
        result: npt.NDArray[np.float64] = of_these @ columns / of_these.sum(axis=1, keepdims=True)
        return result

    return mean


def _adjusted(layer: Layer, found: list[tuple[Fraction, bool, Correlation]]) -> list[Pair]:
    adjusted = np.full(len(found), np.nan)
    p = np.array([correlation.p for _, _, correlation in found])
    headline = np.array([is_headline for _, is_headline, _ in found], dtype=bool)
    # an undefined headline was asked all the same: it counts in its family as p = 1
    if headline.any():
        adjusted[headline] = np.where(
            np.isnan(p[headline]), np.nan, holm(np.nan_to_num(p[headline], nan=1.0))
        )
    tested = ~headline & np.isfinite(p)
    if tested.any():
        adjusted[tested] = benjamini_hochberg(p[tested])
    return [
        Pair(layer.name, epsilon, is_headline, correlation, float(value))
        for (epsilon, is_headline, correlation), value in zip(found, adjusted, strict=True)
    ]


def _empty_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def correlate(
    classifier: Classifier,
    data: ImageData,
    *,
    layer: str = "first",
    neurons: Neurons = "all",
    site: str = "conv",
    replace: str = "zero",
    epsilons: Epsilons,
    mode: str = "adaptive",
    sweep: str = "auto",
    standard_error: float = STANDARD_ERROR,
    batch_size: int = 256,
    seed: int = 0,
) -> Relation:
    """Measure nodal dropout and targeting on the same images, and correlate the two over neurons."""
    grid = parse_epsilons(epsilons)
    selection = select(classifier, data, layer=layer, neurons=neurons, site=site, seed=seed)
    observed = observe_disturbances(
        classifier, data, selection.layers, site, grid, batch_size=batch_size, seed=seed
    )
    predictions, dropped = observe_drops(
        classifier,
        data,
        selection,
        sweep=sweep,
        standard_error=standard_error,
        replace=replace,
        epsilons=grid,
        mode=mode,
        batch_size=batch_size,
        seed=seed,
    )
    fragility = summarise_dropout(selection, predictions, dropped, grid, mode=mode, rule=Rule())
    aim = summarise_targeting(classifier, selection, data.classes, predictions, observed, grid)
    return summarise_relation(selection, predictions, dropped, observed, fragility, aim, seed=seed)
