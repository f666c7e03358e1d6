"""From a selection and a number of images to the list of units of work, always the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

from fragile_neurons.analysis.cumulative import curve_stop
from fragile_neurons.analysis.selection import Selection
from fragile_neurons.analysis.staging import pilot_stop
from fragile_neurons.evidence import ATTACKED_IMAGES, CHECKED_IMAGES
from fragile_neurons.hardening.trials import HARDENED, ORIGINAL, TEMPERED, Trial

BATCHES_PER_UNIT = 4
NEURONS_PER_UNIT = 64
CHECKPOINT = "fit {}.checkpoint"  # in the run's folder, while that network is fitted
SWEPT = ("drops", "patches")
SCORED = ("predictions", "disturbances", *SWEPT)  # what scores of neurons are made of


Kind = Literal[
    "inputs",
    "gradients",
    "predictions",
    "disturbances",
    "drops",
    "patches",
    "design",
    "top",
    "refined",
    "orders",
    "curves",
    "attack",
    "smallest",
    "condition",
    "examples",
    "candidates",
    "pace",
    "fit",
    "chosen",
    "temperature",
    "judged",
]


@dataclass(frozen=True)
class Unit:
    """One piece of work on images start to stop; attack: its name, or that of a condition or score.

    network: the one meant, of several. source: the one that its attack works on, if another.
    """

    kind: Kind
    start: int
    stop: int
    layer: str = ""
    channels: tuple[int, ...] = ()
    attack: str = ""
    network: str = ""
    source: str = ""

    @property
    def id(self) -> str:
        subject = "".join(f" {name}" for name in (self.network, self.attack) if name)
        if self.source:
            subject += f" made on {self.source}"
        if self.layer:
            subject = f" {self.layer}"
        if self.channels:
            subject += f":{self.channels[0]}-{self.channels[-1]}"
        images = f" images {self.start}-{self.stop - 1}" if self.stop else ""
        return f"{self.kind}{subject}{images}"

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def make_plan(
    selection: Selection,
    images: int,
    batch_size: int,
    *,
    patched: bool = True,
    sampled: bool = False,
    batches_per_unit: int = BATCHES_PER_UNIT,
    neurons_per_unit: int = NEURONS_PER_UNIT,
) -> tuple[Unit, ...]:
    """All units of `analyze`. Their size decides what a kill can lose, never a result but for the
    rounding of a sampled sweep's margins.

    patched: there is an epsilon above 0, so that maps can be patched. sampled: after a pilot the sweep
    asks a sample of pairs, so that later units need the results of earlier ones: see `Needs`.
    """
    edges = [*range(0, images, batch_size * batches_per_unit), images]
    spans = list(pairwise([*range(0, images, batch_size), images]))
    edge = pilot_stop(images, batch_size) if sampled else images
    swept = [(start, stop, patched, neurons_per_unit) for start, stop in spans]
    pilot = [one for one in swept if one[1] <= edge]
    units = [
        *_cheap_checks(images),
        *(Unit("predictions", *span) for span in pairwise(edges)),
        *(Unit("disturbances", *span) for span in pairwise(edges)),
        *(unit for one in pilot for unit in _sweep_units(selection, *one)),
    ]
    if edge < images:
        units += [
            *(Unit("design", 0, edge, layer.name) for layer in selection.layers),
            *(unit for one in swept[len(pilot) :] for unit in _sweep_units(selection, *one)),
            Unit("top", 0, images),
            *(Unit("refined", *span) for span in spans),
        ]
    tried = [(start, stop) for start, stop in spans if stop <= curve_stop(images, batch_size)]
    units += [Unit("orders", 0, images, layer.name) for layer in selection.layers]
    units += [Unit("curves", *span, layer.name) for layer in selection.layers for span in tried]
    return (*units, Unit("examples", 0, images))


class Needs:
    """Which units of a plan each is computed from."""

    def __init__(self, plan: Sequence[Unit]) -> None:
        self._plan = plan
        self._found: dict[tuple[str, str], list[Unit]] = defaultdict(list)
        for unit in plan:
            self._found[unit.kind, unit.layer].append(unit)

    def of(self, unit: Unit) -> list[Unit]:
        """The units whose results this one needs."""
        if unit.kind == "design":
            pilot = self._of_kinds(SWEPT, unit.layer)
            return [one for one in pilot if one.stop <= unit.stop]
        if unit.kind in SWEPT:
            return [one for one in self._found["design", unit.layer] if one.stop <= unit.start]
        if unit.kind == "top":
            layers = dict.fromkeys(layer for _, layer in self._found)
            return self._of_kinds(("predictions", "drops"), *layers)
        if unit.kind == "refined":
            return self._found["top", ""]
        if unit.kind == "orders":
            return self._of_kinds(("predictions", "disturbances", "drops"), "", unit.layer)
        if unit.kind == "curves":
            return self._found["orders", unit.layer]
        if unit.network or unit.kind == "candidates":
            return _needed_to_harden(unit, self._plan)
        return []

    def _of_kinds(self, kinds: Sequence[str], *layers: str) -> list[Unit]:
        return [unit for kind in kinds for layer in layers for unit in self._found[kind, layer]]


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
        Unit("examples", 0, images),
    )


def plan_hardening(
    scoring: Sequence[Unit],
    scores: Sequence[str],
    fitted: Sequence[str],
    trials: Sequence[Trial],
    checks: Sequence[str],
    images: int,
    batch_size: int,
) -> tuple[Unit, ...]:
    """All units of `harden`: score, fit, choose, then judge.

    scoring: units of an analysis of validation images. scores: those that candidates are screened by.
    fitted: networks that are fitted. trials: what is asked of all networks.
    """
    networks = dict.fromkeys(trial.network for trial in trials if trial.network != ORIGINAL)
    return (
        *_cheap_checks(images),
        *scoring,
        *(Unit("candidates", 0, 0, attack=score) for score in scores),
        *([Unit("pace", 0, 0)] if fitted else []),
        *(Unit("fit", 0, 0, network=name) for name in fitted),
        *(Unit("chosen", 0, 0, network=name) for name in networks),
        Unit("temperature", 0, 0, network=HARDENED),
        *_cheap_checks(images, HARDENED),
        *(
            Unit("judged", start, stop, attack=trial.attack, network=trial.network, source=trial.source)
            for trial in trials
            for start, stop in pairwise([*range(0, trial.images, batch_size), trial.images])
        ),
        *(
            Unit("condition", 0, min(images, ATTACKED_IMAGES), attack=name, network=HARDENED)
            for name in checks
        ),
        Unit("examples", 0, images, network=HARDENED),
    )


def _needed_to_harden(unit: Unit, plan: Sequence[Unit]) -> list[Unit]:
    """The same for the units of `harden`."""
    if unit.kind == "fit":
        return [one for one in plan if one.kind == "pace"]
    scored = [one for one in plan if one.kind in SCORED]
    if unit.kind == "candidates":
        return scored
    if unit.kind == "chosen":
        if any(one.kind == "fit" and one.network == unit.network for one in plan):
            return [one for one in plan if one.kind == "fit" and one.network == unit.network]
        if unit.network == HARDENED:
            return [*scored, *(one for one in plan if one.kind == "candidates")]
        return [one for one in plan if one.kind == "chosen" and one.network == HARDENED]
    names = {unit.network, unit.source} | ({HARDENED} if unit.source == TEMPERED else set())
    chosen = [one for one in plan if one.kind == "chosen" and one.network in names]
    return chosen + [one for one in plan if one.kind == "temperature" and unit.source == TEMPERED]


def _cheap_checks(images: int, network: str = "") -> tuple[Unit, ...]:
    checked = min(images, CHECKED_IMAGES)
    return Unit("inputs", 0, checked, network=network), Unit("gradients", 0, checked, network=network)


def _sweep_units(
    selection: Selection, start: int, stop: int, patched: bool, neurons_per_unit: int
) -> Iterator[Unit]:
    """Layer by layer: consecutive units share what comes before their neurons."""
    for layer in selection.layers:
        channels = selection.channels(layer)
        for first in range(0, len(channels), neurons_per_unit):
            some = tuple(channels[first : first + neurons_per_unit])
            yield Unit("drops", start, stop, layer.name, some)
            if patched and layer.calls == 1:
                yield Unit("patches", start, stop, layer.name, some)
