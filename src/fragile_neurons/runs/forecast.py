"""What a run would cost by each way to sweep, from a few seconds of its own work on a few images."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fragile_neurons.analysis.cumulative import DRAWS, curve_stop, steps_of
from fragile_neurons.analysis.disturbance import NOISE_DRAWS
from fragile_neurons.analysis.staging import TOP, pilot_stop
from fragile_neurons.classifier import evaluating
from fragile_neurons.neurons import Layer
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.plan import Kind, Unit
from fragile_neurons.runs.spec import AnalyzeSpec
from fragile_neurons.runs.subject import Subject, threads
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.sampling import smallest_probability

PROBE_IMAGES = 32
PROBED_LAYERS = 3
FEW, SOME = 2, 8  # channels swept at once: the difference is what one more of them costs
QUICK = 4.0  # seconds that trying a whole batch may take
KILOBYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Forecast:
    """What `analyze` would take by one way.

    passes: images through the network, or from a neuron on, gradients included. minutes: at this
    machine's speed in the probe. memory: bytes resident in the probe; results: bytes of what the run
    stores, which alone grows with neurons and images. missing: why the way cannot be taken, else empty.
    Of a sampled sweep passes and minutes are the fewest, where predictions hardly flip.
    """

    way: str
    passes: int = 0
    minutes: float = math.nan
    memory: int = 0
    results: int = 0
    missing: str = ""


def forecast(subject: Subject, images: int | None = None) -> list[Forecast]:
    """Reference, exact and, where that can be had, sampled; images: how many there would be, if others."""
    found, images = [], images or len(subject.data)
    with evaluating(subject.classifier):
        whole = Whole.of(subject)
        for name, asked in (("reference", "reference"), ("exact", "auto")):
            choice = choose_way(subject.classifier, subject.selection.sites, subject.selection.images, asked)
            if choice.name != name:
                found.append(Forecast(name, missing=choice.reason))
                continue
            probe = replace(_first_images(subject, min(PROBE_IMAGES, len(subject.data))), way=choice.way)
            found += _forecasts(subject, probe, name, images, whole)
    return found


def _forecasts(subject: Subject, probe: Subject, name: str, images: int, whole: Whole) -> list[Forecast]:
    """Of the way probed and, of exact, of the sample that goes the same way."""
    spec, selection = subject.spec, subject.selection
    assert isinstance(spec, AnalyzeSpec)
    epsilons, small = len(spec.epsilons), len(probe.data)
    counts = [len(selection.channels(layer)) for layer in selection.layers]
    start = time.perf_counter()
    probe.sweeps(0, small)
    opened = time.perf_counter() - start
    probed = sorted({round(place) for place in np.linspace(0, len(counts) - 1, PROBED_LAYERS)})
    measured = [_pair_seconds(probe, selection.layers[place]) for place in probed]
    of_layer, of_pair, stored = (
        np.interp(range(len(counts)), probed, column) for column in zip(*measured, strict=True)
    )
    anew = 2 + epsilons if epsilons and spec.mode == "adaptive" else 0
    chains = DRAWS + 2 * (1 + bool(epsilons))  # those by fragility and by targeting have two halves
    dropped = sum(min(chains, math.comb(count, step)) for count in counts for step in steps_of(count))
    curves = curve_stop(images, spec.batch_size) * dropped
    curves_seconds = curves * (whole.predictions if anew else (1 + epsilons) * whole.forward)
    pairs = images * np.array(counts)
    asked = {name: pairs}
    if name == "exact":
        pilot = pilot_stop(images, spec.batch_size) / images
        floor = smallest_probability(images, spec.standard_error)
        top = TOP / sum(counts) / (1 + 3 * epsilons + anew)  # asked again, but only clean
        asked["sampled"] = pairs * min(1.0, pilot + (1 - pilot) * floor + top)
    found = []
    for way, some in asked.items():
        once = 2 * (2 + epsilons) + 1 + epsilons * (2 + NOISE_DRAWS)
        once += 3 * (1 + epsilons) if way == "sampled" else 0
        seconds = images * (whole.predictions + whole.disturbances + opened / small) + curves_seconds
        seconds += (images * of_layer + some * of_pair).sum() / small
        found.append(
            Forecast(
                way=way,
                passes=int(
                    images * once + some.sum() * (1 + 3 * epsilons + anew) + curves * (anew or 1 + epsilons)
                ),
                minutes=float(seconds / 60),
                memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTES,
                results=int((pairs * stored).sum() / small),
            )
        )
    return found


def _first_images(subject: Subject, n: int) -> Subject:
    """The same without the other images, which would fill up a batch."""
    return replace(subject, data=subject.data.take(np.arange(n)), designs={}, _swept={})


@dataclass(frozen=True)
class Whole:
    """Seconds per image of what is asked of the whole network, whatever the way."""

    predictions: float
    disturbances: float
    forward: float

    @classmethod
    def measure(cls, subject: Subject, n: int) -> Whole:
        """Of the first images, at once."""
        probe = _first_images(subject, n)
        units: tuple[Unit, ...] = (Unit("predictions", 0, n), Unit("disturbances", 0, n))
        predictions, disturbances = (min(_timed(probe, unit)[0] for _ in range(2)) / n for unit in units)
        images = probe.data[:n][0].to(probe.classifier.device)
        return cls(predictions, disturbances, min(_forward_seconds(probe, images) for _ in range(2)) / n)

    @classmethod
    def of(cls, subject: Subject) -> Whole:
        """Of a few images or, where that is quick, of a batch as the run has them."""
        few, batch = (min(count, len(subject.data)) for count in (PROBE_IMAGES, subject.spec.batch_size))
        found = cls.measure(subject, few)
        seconds = 2 * batch * (found.predictions + found.disturbances)
        return cls.measure(subject, batch) if batch > few and seconds < QUICK else found


def _forward_seconds(probe: Subject, images: torch.Tensor) -> float:
    with torch.no_grad(), threads(probe.spec.threads):
        start = time.perf_counter()
        probe.classifier(images)
        return time.perf_counter() - start


def _pair_seconds(probe: Subject, layer: Layer) -> tuple[float, float, float]:
    """For the probe's images: seconds of the layer's own work, of one more channel; bytes of a channel."""
    channels = probe.selection.channels(layer)
    kinds: Sequence[Kind] = ("drops", "patches") if probe.spec.epsilons and layer.calls == 1 else ("drops",)
    times = []
    for count in (FEW, FEW, SOME):  # the first goes on to the layer
        some = tuple(channels[:count])
        found = [_timed(probe, Unit(kind, 0, len(probe.data), layer.name, some)) for kind in kinds]
        times.append((len(some), sum(seconds for seconds, _ in found), sum(size for _, size in found)))
    _, (few, seconds, _), (more, longer, size) = times
    one = (longer - seconds) / (more - few) if more > few else longer / more
    return max(seconds - few * one, 0.0), max(one, 0.0), size / more


def _timed(probe: Subject, unit: Unit) -> tuple[float, int]:
    """Seconds that a unit takes, and bytes of its result."""
    start = time.perf_counter()
    arrays = execute_unit(probe, unit)
    return time.perf_counter() - start, sum(array.nbytes for array in arrays.values())
