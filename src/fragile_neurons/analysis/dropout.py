"""Nodal dropout: what the network loses without a neuron, and the verdict on the neuron."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.selection import Neurons, Selection, neuron_table, select
from fragile_neurons.analysis.staging import Designs, observe_in_stages, pilot_stop, top_neurons
from fragile_neurons.analysis.verdicts import Drops, Rule, judge_adversarial, judge_clean
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import check_choice
from fragile_neurons.interventions import record_maps
from fragile_neurons.neurons import Layer, Neuron, Site
from fragile_neurons.norms import Epsilons, parse_epsilons
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.observed import Dropped
from fragile_neurons.sweeps.sampling import STANDARD_ERROR, Sample
from fragile_neurons.sweeps.sweep import Sweep
from fragile_neurons.sweeps.way import Way

Mode = Literal["adaptive", "transfer"]
Replace = Literal["zero", "mean"]
MODES, REPLACEMENTS = get_args(Mode), get_args(Replace)

Array = npt.NDArray[Any]


def replacements(
    classifier: Classifier,
    data: ImageData,
    layer: Layer,
    *,
    site: str,
    replace: str,
    batch_size: int,
) -> list[float]:
    """What each channel becomes when dropped: `zero`, or its `mean` over all images and positions."""
    if replace == "zero":
        return [0.0] * layer.channels
    total = torch.zeros(layer.channels, dtype=torch.float64)
    with evaluating(classifier):
        for batch in batches(data, batch_size, classifier.device):
            (maps,) = record_maps(classifier, [layer.site(site)], batch.images)
            total += maps[: batch.count].double().mean(dim=2).sum(dim=0).cpu()
    return [value / len(data) for value in total.tolist()]


def open_sweeps(
    way: Way,
    classifier: Classifier,
    data: ImageData,
    sites: Sequence[Site],
    epsilons: Sequence[Fraction],
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    designs: Designs = None,
    seed: int = 0,
) -> Iterator[tuple[Sweep, int]]:
    """The batches of images start to stop, ready to be swept, each with its number of images."""
    for batch in batches(data, batch_size, classifier.device, start, stop):
        sample = None
        if designs is not None:
            sample = Sample(designs, seed, batch.positions)
        yield Sweep(way, classifier, sites, batch.images, batch.labels, epsilons, sample), batch.count


@dataclass(frozen=True, eq=False)
class Dropout:
    """Each neuron's drops: accuracy with the whole network minus accuracy without the neuron.

    clean: on the images. adv: one per epsilon, on FGSM images, in the mode said. margin_drop:
    (neurons,) mean fall of the margin, in logits. adv_margin_drop, transfer_drop, gap_drop:
    (epsilons, neurons); gap_drop is empty (nan) in mode transfer.
    """

    neurons: tuple[Neuron, ...]
    epsilons: tuple[Fraction, ...]
    site: str
    mode: str
    rule: Rule
    clean: Drops
    adv: tuple[Drops, ...]
    margin_drop: Array
    adv_margin_drop: Array
    transfer_drop: Array
    gap_drop: Array

    def to_table(self) -> pa.Table:
        """A row per neuron and epsilon, columns as in neurons.csv; one row per neuron without epsilons."""
        rows = max(1, len(self.epsilons))

        def repeat(values: Array) -> Array:
            return np.broadcast_to(values, (rows, len(self.neurons)))

        columns = {"site": repeat(np.array(self.site)), "mode": repeat(np.array(self.mode))}
        columns |= {f"clean_{key}": repeat(values) for key, values in self.clean.columns().items()}
        empty = Drops.empty(len(self.neurons))
        by_epsilon = [drops.columns() for drops in self.adv or (empty,)]
        columns |= {f"adv_{key}": np.stack([one[key] for one in by_epsilon]) for key in by_epsilon[0]}
        columns["sampling_se"] = columns.pop("clean_sampling_se")
        columns |= {"margin_drop": repeat(self.margin_drop)}
        columns |= {name: getattr(self, name) for name in ("transfer_drop", "gap_drop", "adv_margin_drop")}
        return neuron_table(self.neurons, self.epsilons, columns)


def summarise_dropout(
    selection: Selection,
    predictions: Predictions,
    dropped: Dropped,
    epsilons: Sequence[Fraction],
    *,
    mode: str,
    rule: Rule,
) -> Dropout:
    """Drops, intervals and verdicts from what was observed on all images."""
    layers = np.array([neuron.layer for neuron in selection.neurons])
    right, adv_right = predictions.right[:, None], predictions.adv_right[..., None]
    transfer_drop = (adv_right.astype(np.int8) - dropped.transfer_right).mean(axis=1)
    if mode == "adaptive":
        without, adv_margin = dropped.adv_right, dropped.adv_margin
    else:
        without, adv_margin = dropped.transfer_right, dropped.transfer_margin
    clean = judge_clean(right, dropped, predictions, layers, rule)
    adv = tuple(
        judge_adversarial(adv_right[row], without[row], dropped, row, predictions, layers, rule, mode=mode)
        for row in range(len(epsilons))
    )
    adv_drop = (adv_right.astype(np.int8) - without).mean(axis=1)
    gap_drop = clean.drop - adv_drop
    margin_fall = predictions.adv_margin[..., None].astype(np.float64) - adv_margin
    return Dropout(
        neurons=selection.neurons,
        epsilons=tuple(epsilons),
        site=selection.site,
        mode=mode,
        rule=rule,
        clean=clean,
        adv=adv,
        margin_drop=(predictions.margin[:, None].astype(np.float64) - dropped.clean_margin).mean(axis=0),
        adv_margin_drop=margin_fall.mean(axis=1),
        transfer_drop=transfer_drop,
        gap_drop=gap_drop if mode == "adaptive" else np.full_like(gap_drop, np.nan),
    )


def observe_drops(
    classifier: Classifier,
    data: ImageData,
    selection: Selection,
    *,
    sweep: str,
    standard_error: float = STANDARD_ERROR,
    replace: str,
    epsilons: Sequence[Fraction],
    mode: str,
    batch_size: int,
    seed: int = 0,
) -> tuple[Predictions, Dropped]:
    """Drop every chosen neuron in turn, on all images or, sampled, on as few as the standard error allows;
    and what the network as it is says of the images.
    """
    check_choice("mode", mode, MODES)
    check_choice("replace", replace, REPLACEMENTS)
    way = choose_way(classifier, selection.sites, selection.images, sweep).way
    values = {
        layer.name: replacements(
            classifier, data, layer, site=selection.site, replace=replace, batch_size=batch_size
        )
        for layer in selection.layers
    }

    def observed(chosen: Selection, epsilons: Sequence[Fraction], pilot: int) -> tuple[Predictions, Dropped]:
        def opened(start: int, stop: int, designs: Designs) -> Iterator[tuple[Sweep, int]]:
            span = {"batch_size": batch_size, "start": start, "stop": stop}
            return open_sweeps(
                way, classifier, data, chosen.sites, epsilons, designs=designs, seed=seed, **span
            )

        predictions, found = observe_in_stages(
            chosen,
            opened,
            lambda sweep, layer: sweep.drop(
                layer.site(chosen.site),
                chosen.channels(layer),
                values[layer.name],
                adaptive=mode == "adaptive",
            ),
            values,
            epsilons,
            images=len(data),
            pilot=pilot,
            standard_error=standard_error,
        )
        return predictions, Dropped.join_neurons(list(found.values()))

    with evaluating(classifier):
        if sweep != "sampled":
            return observed(selection, epsilons, len(data))
        predictions, dropped = observed(selection, epsilons, pilot_stop(len(data), batch_size))
        top = top_neurons(predictions, dropped)
        if len(top):
            _, asked_again = observed(selection.of_neurons(top), (), len(data))
            dropped = dropped.refined(top, asked_again)
        return predictions, dropped


def dropout(
    classifier: Classifier,
    data: ImageData,
    *,
    layer: str = "first",
    neurons: Neurons = "all",
    site: str = "conv",
    replace: str = "zero",
    epsilons: Epsilons = (),
    mode: str = "adaptive",
    verdict_rule: str = "tested",
    tolerance: float = 0.01,
    sweep: str = "auto",
    standard_error: float = STANDARD_ERROR,
    batch_size: int = 256,
    seed: int = 0,
) -> Dropout:
    """Drop each chosen neuron in turn; epsilons=[] measures clean images only.

    standard_error: of each drop, a fraction, that a sampled sweep may have for not asking every image.
    """
    grid, rule = parse_epsilons(epsilons), Rule(verdict_rule, tolerance)
    check_choice("mode", mode, MODES)
    check_choice("replace", replace, REPLACEMENTS)
    selection = select(classifier, data, layer=layer, neurons=neurons, site=site, seed=seed)
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
    return summarise_dropout(selection, predictions, dropped, grid, mode=mode, rule=rule)
