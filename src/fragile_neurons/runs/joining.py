"""Units' results put together: more images, and more neurons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from fragile_neurons.analysis.disturbance import Disturbances
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.evidence import Arrays
from fragile_neurons.runs.plan import Unit
from fragile_neurons.sweeps.observed import Dropped, Patched

Given = Iterable[tuple[Unit, Arrays]]


def join_predictions(given: Given) -> Predictions:
    """The predictions among these results."""
    return Predictions.join([Predictions(**arrays) for unit, arrays in given if unit.kind == "predictions"])


def join_disturbances(given: Given, layer: str) -> Disturbances:
    """The disturbances of one layer among these results."""
    prefix = f"{layer}/"
    parts = [
        {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for unit, arrays in given
        if unit.kind == "disturbances"
    ]
    return Disturbances.join([Disturbances(**part) for part in parts])


def join_drops(given: Given) -> Dropped:
    """The drops among these results, in the order of the plan."""
    parts: dict[tuple[str, tuple[int, ...]], list[Dropped]] = defaultdict(list)
    for unit, arrays in given:
        if unit.kind == "drops":
            parts[unit.layer, unit.channels].append(Dropped(**arrays))
    return Dropped.join_neurons([Dropped.join_images(found) for found in parts.values()])


def join_patches(given: Given) -> dict[str, Patched]:
    """The patches among these results, by layer."""
    parts: dict[tuple[str, tuple[int, ...]], list[Patched]] = defaultdict(list)
    for unit, arrays in given:
        if unit.kind == "patches":
            parts[unit.layer, unit.channels].append(Patched(**arrays))
    layers: dict[str, list[Patched]] = defaultdict(list)
    for (layer, _), found in parts.items():
        layers[layer].append(Patched.join_images(found))
    return {layer: Patched.join_neurons(found) for layer, found in layers.items()}
