"""The stages of a sampled sweep: a pilot, a design learnt from it, every clean image for the top neurons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.selection import Selection
from fragile_neurons.data.batches import whole_batches
from fragile_neurons.neurons import Layer, Site
from fragile_neurons.sweeps.observed import Dropped, Patched
from fragile_neurons.sweeps.sampling import PILOT_IMAGES, Design, FirstOrder, Odds
from fragile_neurons.sweeps.sweep import Sweep

Seen = TypeVar("Seen", Dropped, Patched)
Designs = Mapping[str, Design] | None
"""Of the sample of pairs that is asked, by layer; None: every pair is."""

Opened = Callable[[int, int, Designs], Iterator[tuple[Sweep, int]]]
"""From the first and the last image, and designs, to the batches with their numbers of images."""

TOP = 5


def pilot_stop(images: int, batch_size: int) -> int:
    """The images of the pilot: the first whole batches."""
    return whole_batches(images, PILOT_IMAGES, batch_size)


def learn_design(
    sweeps: Sequence[tuple[Sweep, int]],
    site: Site,
    channels: Sequence[int],
    values: Sequence[float],
    found: Sequence[Dropped | Patched],
    epsilons: Sequence[Fraction],
    *,
    images: int,
    standard_error: float,
) -> Design:
    """What the pilot teaches of one layer. sweeps: its batches, each with its number of images.

    found: what became of these channels on them. images: how many there are in all.
    """
    after = {
        name: margin.T.astype(np.float64) for one in found for name, margin in one.margins(epsilons).items()
    }
    parts: dict[str, list[FirstOrder]] = defaultdict(list)
    for sweep, count in sweeps:
        for name, told in sweep.first_order(site, channels, values, after).items():
            parts[name].append(told.first_images(count))
    return Design(
        tuple(channels),
        {
            name: Odds.learn(
                FirstOrder.join(parts[name]), margins, images=images, standard_error=standard_error
            )
            for name, margins in after.items()
        },
    )


def observe_in_stages(
    selection: Selection,
    opened: Opened,
    ask: Callable[[Sweep, Layer], Seen],
    values: Mapping[str, Sequence[float]],
    epsilons: Sequence[Fraction],
    *,
    images: int,
    pilot: int,
    standard_error: float,
) -> tuple[Predictions, dict[str, Seen]]:
    """Ask of each layer on all images, by layer; after the pilot's images only a sample of the pairs."""
    whole: list[Predictions] = []

    def observed(start: int, stop: int, designs: Designs = None) -> dict[str, Seen]:
        parts: dict[str, list[Seen]] = defaultdict(list)
        for sweep, count in opened(start, stop, designs):
            whole.append(Predictions.of(sweep.whole, sweep.labels, count))
            for layer in selection.layers:
                parts[layer.name].append(ask(sweep, layer).first_images(count))
        return {name: type(found[0]).join_images(found) for name, found in parts.items()}

    found = observed(0, pilot)
    if pilot == images:
        return Predictions.join(whole), found
    sweeps = list(opened(0, pilot, None))
    designs = {
        layer.name: learn_design(
            sweeps,
            site,
            selection.channels(layer),
            values[layer.name],
            [found[layer.name]],
            epsilons,
            images=images,
            standard_error=standard_error,
        )
        for layer, site in zip(selection.layers, selection.sites, strict=True)
    }
    rest = observed(pilot, images, designs)
    both = {name: type(one).join_images([one, rest[name]]) for name, one in found.items()}
    return Predictions.join(whole), both


def top_neurons(predictions: Predictions, dropped: Dropped) -> npt.NDArray[np.int64]:
    """The places of the neurons with the largest clean drops, if these are estimates."""
    drop = np.abs((predictions.right[:, None].astype(np.float32) - dropped.clean_right).mean(axis=0))
    top = np.sort(np.argsort(-drop, kind="stable")[:TOP])
    estimated: npt.NDArray[np.bool_] = dropped.clean_heaviest.max(axis=0) > 1
    return top[estimated[top]]
