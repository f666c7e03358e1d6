"""From a selection and a number of images to the list of units of work, always the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

from fragile_neurons.analysis.selection import Selection
from fragile_neurons.honesty import CHECKED_IMAGES

BATCHES_PER_UNIT = 4
NEURONS_PER_UNIT = 8


@dataclass(frozen=True)
class Unit:
    """One piece of work on images start to stop: checks of the inputs, predictions, disturbances, drops."""

    kind: Literal["inputs", "predictions", "disturbances", "drops"]
    start: int
    stop: int
    layer: str = ""
    channels: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        subject = f" {self.layer}:{self.channels[0]}-{self.channels[-1]}" if self.channels else ""
        return f"{self.kind}{subject} images {self.start}-{self.stop - 1}"

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def make_plan(
    selection: Selection,
    images: int,
    batch_size: int,
    *,
    batches_per_unit: int = BATCHES_PER_UNIT,
    neurons_per_unit: int = NEURONS_PER_UNIT,
) -> tuple[Unit, ...]:
    """All units of a run. Their size decides what a kill can lose, never a result."""
    return tuple(_units(selection, images, batch_size * batches_per_unit, neurons_per_unit))


def _units(selection: Selection, images: int, images_per_unit: int, neurons_per_unit: int) -> Iterator[Unit]:
    yield Unit("inputs", 0, min(images, CHECKED_IMAGES))
    edges = [*range(0, images, images_per_unit), images]
    for start, stop in pairwise(edges):
        yield Unit("predictions", start, stop)
    for start, stop in pairwise(edges):
        yield Unit("disturbances", start, stop)
    for layer in selection.layers:
        channels = selection.channels(layer)
        for first in range(0, len(channels), neurons_per_unit):
            for start, stop in pairwise(edges):
                yield Unit(
                    "drops", start, stop, layer.name, tuple(channels[first : first + neurons_per_unit])
                )
