"""From a selection and a number of images to the list of units of work, always the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

from fragile_neurons.analysis.selection import Selection
from fragile_neurons.evidence import ATTACKED_IMAGES, CHECKED_IMAGES

BATCHES_PER_UNIT = 4
NEURONS_PER_UNIT = 64


Kind = Literal[
    "inputs",
    "gradients",
    "predictions",
    "disturbances",
    "drops",
    "patches",
    "attack",
    "smallest",
    "condition",
]


@dataclass(frozen=True)
class Unit:
    """One piece of work on images start to stop; attack: its name, or that of a condition."""

    kind: Kind
    start: int
    stop: int
    layer: str = ""
    channels: tuple[int, ...] = ()
    attack: str = ""

    @property
    def id(self) -> str:
        subject = f" {self.attack}" if self.attack else ""
        if self.channels:
            subject = f" {self.layer}:{self.channels[0]}-{self.channels[-1]}"
        return f"{self.kind}{subject} images {self.start}-{self.stop - 1}"

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def make_plan(
    selection: Selection,
    images: int,
    batch_size: int,
    *,
    patched: bool = True,
    batches_per_unit: int = BATCHES_PER_UNIT,
    neurons_per_unit: int = NEURONS_PER_UNIT,
) -> tuple[Unit, ...]:
    """All units of `analyze`. Their size decides what a kill can lose, never a result.

    patched: there is an epsilon above 0, so that maps can be patched.
    """
    return tuple(_units(selection, images, batch_size, batches_per_unit, neurons_per_unit, patched=patched))


def plan_evaluation(
    attacks: Sequence[str], checks: Sequence[str], images: int, batch_size: int
) -> tuple[Unit, ...]:
    """All units of `evaluate`: a batch of each attack, and every condition that its checks compare."""
    spans = list(pairwise([*range(0, images, batch_size), images]))
    return (
        *_cheap_checks(images),
        *(Unit("predictions", *span) for span in spans),
        *(Unit("attack", *span, attack=attack) for attack in attacks for span in spans),
        *(Unit("smallest", *span) for span in spans),
        *(Unit("condition", 0, min(images, ATTACKED_IMAGES), attack=name) for name in checks),
    )


def _cheap_checks(images: int) -> tuple[Unit, ...]:
    checked = min(images, CHECKED_IMAGES)
    return Unit("inputs", 0, checked), Unit("gradients", 0, checked)


def _units(
    selection: Selection,
    images: int,
    batch_size: int,
    batches_per_unit: int,
    neurons_per_unit: int,
    *,
    patched: bool,
) -> Iterator[Unit]:
    yield from _cheap_checks(images)
    edges = [*range(0, images, batch_size * batches_per_unit), images]
    for start, stop in pairwise(edges):
        yield Unit("predictions", start, stop)
    for start, stop in pairwise(edges):
        yield Unit("disturbances", start, stop)
    # batch by batch, layer by layer: consecutive units share what comes before their neurons
    for start, stop in pairwise([*range(0, images, batch_size), images]):
        for layer in selection.layers:
            channels = selection.channels(layer)
            for first in range(0, len(channels), neurons_per_unit):
                some = tuple(channels[first : first + neurons_per_unit])
                yield Unit("drops", start, stop, layer.name, some)
                if patched and layer.calls == 1:
                    yield Unit("patches", start, stop, layer.name, some)
