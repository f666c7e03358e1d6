"""What an analysis is about: the layers and neurons chosen, after the fatal checks have passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.data.batches import Batch, batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError
from fragile_neurons.neurons import Layer, Neuron, Site, executed_layers, select_layers, select_neurons
from fragile_neurons.probe import PROBE_IMAGES, Check, probe

Neurons = str | int | Sequence[str]
"""`all`, so many of each layer (drawn by the seed), or names such as conv1:3."""


@dataclass(frozen=True)
class Selection:
    """Layers in order of execution, their chosen neurons in the same order, and the site of all.

    images: those of the probe, on the classifier's device.
    """

    layers: tuple[Layer, ...]
    neurons: tuple[Neuron, ...]
    site: str
    images: torch.Tensor = field(compare=False, repr=False)
    checks: tuple[Check, ...]

    @property
    def sites(self) -> list[Site]:
        """The site of each layer."""
        return [layer.site(self.site) for layer in self.layers]

    def of_neurons(self, places: Sequence[int] | npt.NDArray[np.int64]) -> Selection:
        """The neurons at these places alone, and their layers."""
        chosen = tuple(self.neurons[place] for place in places)
        named = {neuron.layer for neuron in chosen}
        return replace(self, layers=tuple(one for one in self.layers if one.name in named), neurons=chosen)

    def layer(self, name: str) -> Layer:
        """The layer of this name."""
        return next(layer for layer in self.layers if layer.name == name)

    def places(self, layer: Layer) -> npt.NDArray[np.int64]:
        """Where the neurons of a layer are among all of them."""
        return np.flatnonzero([neuron.layer == layer.name for neuron in self.neurons])

    def channels(self, layer: Layer) -> list[int]:
        """The chosen channels of a layer, ascending."""
        return [neuron.channel for neuron in self.neurons if neuron.layer == layer.name]


def probed(classifier: Classifier, data: ImageData) -> tuple[Batch, tuple[Check, ...]]:
    """The first images, and the fatal checks on them, in float32; raises InputError where one fails."""
    if len(data) < 2:
        raise InputError(
            "there are too few images", given=len(data), allowed="at least 2", fix="give more images"
        )
    batch = next(batches(data, PROBE_IMAGES, classifier.device))
    return batch, probe(classifier.as_dtype("float32"), batch.images, batch.labels, data.classes)


def probed_layers(classifier: Classifier, data: ImageData) -> tuple[tuple[Layer, ...], tuple[Check, ...]]:
    """All executed layers, after the fatal checks; raises InputError where one fails."""
    batch, checks = probed(classifier, data)
    return executed_layers(classifier, batch.images), checks


def select(
    classifier: Classifier,
    data: ImageData,
    *,
    layer: str = "first",
    neurons: Neurons = "all",
    site: str = "conv",
    seed: int = 0,
) -> Selection:
    """Probe the network and choose; layer and neurons as in the command's options of these names."""
    batch, checks = probed(classifier, data)
    layers = select_layers(classifier, executed_layers(classifier, batch.images), layer)
    for one in layers:
        one.site(site)
    chosen = select_neurons(layers, neurons_text(neurons), seed)
    return Selection(layers, chosen, site, batch.images, checks).of_neurons(range(len(chosen)))


def neurons_text(neurons: Neurons) -> str:
    """As the option of the command has it."""
    return str(neurons) if isinstance(neurons, str | int) else ",".join(neurons)


def neuron_table(
    neurons: Sequence[Neuron], epsilons: Sequence[Fraction], columns: dict[str, npt.NDArray[Any]]
) -> pa.Table:
    """Columns of shape (epsilons, neurons) as a table: a row per neuron and epsilon, nan as empty.

    Without epsilons there is one row per neuron, and what has no row at all is empty in it.
    """
    grid: list[float | None] = [float(epsilon) for epsilon in epsilons] or [None]
    keys = {
        "layer": pa.array([neuron.layer for neuron in neurons for _ in grid], pa.string()),
        "channel": pa.array([neuron.channel for neuron in neurons for _ in grid], pa.int64()),
        "epsilon": pa.array([epsilon for _ in neurons for epsilon in grid], pa.float64()),
    }
    nothing = np.full((1, len(neurons)), np.nan)
    values = {
        name: pa.array((array if len(array) else nothing).T.ravel(), from_pandas=True)
        for name, array in columns.items()
    }
    return pa.table({**keys, **values})
