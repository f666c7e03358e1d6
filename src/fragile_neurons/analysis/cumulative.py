"""Neurons dropped one after another: single drops hide what twins do for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fragile_neurons.analysis.disturbance import Disturbances, observe_disturbances
from fragile_neurons.analysis.dropout import MODES, REPLACEMENTS, observe_drops, replacements
from fragile_neurons.analysis.predictions import Predictions, observe_predictions
from fragile_neurons.analysis.selection import Neurons, select
from fragile_neurons.analysis.targeting import image_shares
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import Batch, batches, whole_batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import check_choice
from fragile_neurons.interventions import drop, intervening
from fragile_neurons.neurons import Layer, Site
from fragile_neurons.norms import Epsilons, parse_epsilons
from fragile_neurons.seeds import numpy_generator
from fragile_neurons.stats import wilson
from fragile_neurons.sweeps.baseline import measure_baseline
from fragile_neurons.sweeps.observed import Dropped

ORDERS = ("fragility", "targeting", "random")
DRAWS = 20  # of the random order, the control of the other two
MOST_STEPS = 16
CURVE_IMAGES = 500
BOTH = -1  # halves, in a ledger

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Chain:
    """Channels in the order in which they are dropped; half: of the images on which it is tried, or both."""

    order: str
    draw: int
    half: int | None
    channels: tuple[int, ...]


def chains_to_arrays(tried: Sequence[Chain]) -> dict[str, Array]:
    """By name, as a ledger stores them."""
    return {
        "order": np.array([ORDERS.index(chain.order) for chain in tried]),
        "draw": np.array([chain.draw for chain in tried]),
        "half": np.array([BOTH if chain.half is None else chain.half for chain in tried]),
        "channels": np.array([chain.channels for chain in tried]),
    }


def chains_from_arrays(arrays: Mapping[str, Array]) -> list[Chain]:
    """What chains_to_arrays made."""
    columns = (arrays[name].tolist() for name in ("order", "draw", "half", "channels"))
    return [
        Chain(ORDERS[order], draw, None if half == BOTH else half, tuple(channels))
        for order, draw, half, channels in zip(*columns, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Curve:
    """One order at one layer: how many neurons are dropped at each step.

    right: (1 + epsilons, steps, n) classified right, clean first.
    """

    layer: str
    order: str
    draw: int
    steps: tuple[int, ...]
    right: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Cumulative:
    """Accuracy with more and more neurons of a layer dropped, clean and under FGSM.

    Orders: fragility (mean fall of the clean margin), targeting (share at the largest epsilon), random. An
    order comes from one half of the images and is tried on the other, both ways; n: the images tried.
    """

    epsilons: tuple[Fraction, ...]
    mode: str
    curves: tuple[Curve, ...]

    def to_table(self) -> pa.Table:
        """A row per layer, epsilon (empty: clean), order, draw and step (neurons dropped)."""
        rows = []
        for curve in self.curves:
            for condition, epsilon in enumerate((None, *map(float, self.epsilons))):
                for step, right in zip(curve.steps, curve.right[condition], strict=True):
                    low, high = wilson(int(right.sum()), len(right))
                    rows.append(
                        {
                            "layer": curve.layer,
                            "epsilon": epsilon,
                            "order": curve.order,
                            "draw": curve.draw,
                            "step": step,
                            "accuracy": float(right.mean()),
                            "n": len(right),
                            "low": low,
                            "high": high,
                        }
                    )
        return pa.Table.from_pylist(rows, schema=CUMULATIVE)


CUMULATIVE = pa.schema(
    [
        ("layer", pa.string()),
        ("epsilon", pa.float64()),
        ("order", pa.string()),
        ("draw", pa.int64()),
        ("step", pa.int64()),
        ("accuracy", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


def curve_stop(images: int, batch_size: int) -> int:
    """The images on which curves are measured: the first whole batches."""
    return whole_batches(images, CURVE_IMAGES, batch_size)


def steps_of(channels: int) -> tuple[int, ...]:
    """How many neurons are dropped at each step: 0, 1, 2, 4, ... below all of them."""
    return (0, *(2**power for power in range(MOST_STEPS) if 2**power < channels))


def halves(images: int, seed: int) -> npt.NDArray[np.int64]:
    """(images,) 0 or 1, as many of each as can be."""
    order = numpy_generator(seed, "halves of the images").random(images).argsort(kind="stable")
    half = np.zeros(images, dtype=np.int64)
    half[order[images // 2 :]] = 1
    return half


def chains(
    layer: Layer,
    channels: Sequence[int],
    predictions: Predictions,
    dropped: Dropped,
    observed: Disturbances,
    *,
    seed: int,
) -> list[Chain]:
    """The orders of one layer's channels; dropped: of these alone, observed: of all of its channels."""
    fall = predictions.margin[:, None].astype(np.float64) - dropped.clean_margin
    scores = {"fragility": (fall, np.ones(len(fall), dtype=bool))}
    struck = predictions.right & observed.disturbance[-1:].any(axis=(0, -1))
    if struck.any():
        scores["targeting"] = image_shares(observed)[-1][:, list(channels)], struck
    half = halves(len(fall), seed)
    found = []
    for order, (values, counted) in scores.items():
        for side in (0, 1):
            score = values[counted & (half != side)].sum(axis=0)
            found.append(Chain(order, 0, side, _ordered(channels, -score)))
    for draw in range(DRAWS):
        chance = numpy_generator(seed, f"random order of {layer.name}", draw).random(len(channels))
        found.append(Chain("random", draw, None, _ordered(channels, chance)))
    return found


def _ordered(channels: Sequence[int], keys: Array) -> tuple[int, ...]:
    return tuple(channels[place] for place in np.argsort(keys, kind="stable"))


def observe_chains(
    classifier: Classifier,
    batch: Batch,
    site: Site,
    tried: Sequence[Chain],
    values: Sequence[float],
    epsilons: Sequence[Fraction],
    *,
    mode: str,
) -> npt.NDArray[np.bool_]:
    """(chains, 1 + epsilons, steps, n) classified right, clean first; values: of each channel dropped."""
    adaptive = mode == "adaptive" and bool(epsilons)
    turns = [batch.images]
    if epsilons and not adaptive:
        turns += fgsm(classifier, batch.images, batch.labels, epsilons)

    @cache  # chains begin with the same few channels
    def right_without(channels: frozenset[int]) -> torch.Tensor:
        with intervening(classifier, site, sorted(channels), drop(values)):
            if adaptive:
                anew = measure_baseline(classifier, batch.images, batch.labels, epsilons)
                logits = [anew.logits, *anew.adversarial_logits]
            else:
                with torch.no_grad():
                    logits = [classifier(images) for images in turns]
        return torch.stack(logits).argmax(-1) == batch.labels

    answers = []
    for chain in tried:
        steps = steps_of(len(chain.channels))
        of_chain = [right_without(frozenset(chain.channels[:step])) for step in steps]
        answers.append(torch.stack(of_chain, dim=1))
    return torch.stack(answers)[..., : batch.count].cpu().numpy()


def summarise_chains(
    layer: Layer, tried: Sequence[Chain], right: npt.NDArray[np.bool_], half: npt.NDArray[np.int64]
) -> list[Curve]:
    """The curves of one layer from all images' answers, each image's from the order of the other half."""
    of_order: dict[tuple[str, int], npt.NDArray[np.bool_]] = {}
    for chain, answers in zip(tried, right, strict=True):
        here = half == chain.half if chain.half is not None else np.ones(len(half), dtype=bool)
        kept = of_order.setdefault((chain.order, chain.draw), answers.copy())
        kept[..., here] = answers[..., here]
    steps = steps_of(len(tried[0].channels))
    return [Curve(layer.name, order, draw, steps, answers) for (order, draw), answers in of_order.items()]


def cumulative(
    classifier: Classifier,
    data: ImageData,
    *,
    layer: str = "first",
    neurons: Neurons = "all",
    site: str = "conv",
    replace: str = "zero",
    epsilons: Epsilons = (),
    mode: str = "adaptive",
    sweep: str = "auto",
    batch_size: int = 256,
    seed: int = 0,
) -> Cumulative:
    """Drop a layer's neurons one after another: the fragile first, the targeted first, and at random."""
    grid = parse_epsilons(epsilons)
    check_choice("mode", mode, MODES)
    check_choice("replace", replace, REPLACEMENTS)
    selection = select(classifier, data, layer=layer, neurons=neurons, site=site, seed=seed)
    predictions = observe_predictions(classifier, data, grid, batch_size=batch_size)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    observed = observe_disturbances(classifier, data, selection.layers, site, grid, **options)
    _, dropped = observe_drops(
        classifier,
        data,
        selection,
        sweep=sweep,
        replace=replace,
        epsilons=(),
        mode=mode,
        **options,
    )
    stop = curve_stop(len(data), batch_size)
    curves: list[Curve] = []
    for one in selection.layers:
        tried = chains(
            one,
            selection.channels(one),
            predictions,
            dropped.of_neurons(selection.places(one)),
            observed[one.name],
            seed=seed,
        )
        values = replacements(classifier, data, one, site=site, replace=replace, batch_size=batch_size)
        with evaluating(classifier):
            parts = [
                observe_chains(classifier, batch, one.site(site), tried, values, grid, mode=mode)
                for batch in batches(data, batch_size, classifier.device, 0, stop)
            ]
        right = np.concatenate(parts, axis=-1)
        curves += summarise_chains(one, tried, right, halves(len(data), seed)[:stop])
    return Cumulative(grid, mode, tuple(curves))
