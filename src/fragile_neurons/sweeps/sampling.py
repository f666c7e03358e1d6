"""Asking few pairs of a neuron and an image, drawn where predictions are likely to flip, for all of them.

Source: Horvitz and Thompson 1952, with Poisson sampling; the design is ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fragile_neurons.seeds import numpy_generator
from fragile_neurons.sweeps.answers import Weighted

STANDARD_ERROR = 0.001  # of an accuracy, a fraction
PILOT_IMAGES = 256  # of which every pair is asked
FEWEST = 30  # images of the pilot without which there is no telling
FLOOR = 0.02
LARGEST_PART = 0.22  # of the variance asked for, that a single flip may make up
AIM, DOUBT = 0.65, 4.0  # of the standard error asked for, which the pilot foretells with errors of its own
SURE = 0.65  # of a neuron's pairs: where more are asked, all are
MOST_GROWTH = 0.9  # of the variance of the errors, that grows with the change they come from
TAIL = 4  # the power with which errors larger than all of the pilot's get rarer
SEARCH_STEPS = 60

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """One question before it is asked.

    margins: (n,). changes: (channels, n), of the margins, predicted. sizes: (channels, n), the norm of the
    change that these come from, 0 where nothing moves. asked: (n,) bool, which images are asked at all.
    """

    margins: Array
    changes: Array
    sizes: Array
    asked: npt.NDArray[np.bool_]

    def first_images(self, count: int) -> FirstOrder:
        """The first images alone."""
        return self.of_images(np.arange(count))

    def of_images(self, rows: npt.NDArray[Any]) -> FirstOrder:
        """Some of the images."""
        return FirstOrder(**{field.name: getattr(self, field.name)[..., rows] for field in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[FirstOrder]) -> FirstOrder:
        """More images."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], -1) for name in names})


@dataclass(frozen=True, eq=False)
class Fit:
    """How margins change where that was predicted, (channels,) each.

    The change of a margin is offset + slope * predicted, with errors of the root mean square
    sqrt(spread^2 + (growth * size)^2).
    """

    slope: Array
    offset: Array
    spread: Array
    growth: Array

    @classmethod
    def of(cls, told: FirstOrder, after: Array) -> Fit:
        """From what was predicted and the margins afterwards, (channels, n)."""
        actual, changes = after - told.margins, told.changes
        centred = changes - changes.mean(axis=1, keepdims=True)
        length = (centred**2).sum(axis=1)
        slope = (centred * actual).sum(axis=1) / np.where(length > 0, length, 1.0)
        offset = actual.mean(axis=1) - slope * changes.mean(axis=1)
        error = actual - slope[:, None] * changes - offset[:, None]
        return Fit(slope, offset, *_error_model(error, told.sizes))

    def expected(self, predicted: FirstOrder) -> Array:
        """(channels, n) the margins afterwards."""
        return predicted.margins + self.offset[:, None] + self.slope[:, None] * predicted.changes

    def expected_errors(self, predicted: FirstOrder) -> Array:
        """(channels, n) the root mean square error of each of these."""
        return np.maximum(np.hypot(self.spread[:, None], self.growth[:, None] * predicted.sizes), 1e-12)


@dataclass(frozen=True, eq=False)
class Odds(Fit):
    """How what was predicted of one layer comes true under one question, learnt from a pilot.

    errors: (any,) in units of those expected, ascending, of all channels. factor: (channels,) a pair is
    asked with probability factor * sqrt(probability that the prediction flips), at least that
    probability, and at least floor, (channels,).
    """

    errors: Array
    factor: Array
    floor: Array

    @classmethod
    def learn(cls, pilot: FirstOrder, after: Array, *, images: int, standard_error: float) -> Odds:
        """From what was predicted of the pilot's images and the margins afterwards, (channels, n).

        images: all that there are; the standard error is that of the mean over those of them that are asked.
        """
        here, channels = pilot.asked, len(after)
        if here.sum() < FEWEST:  # there is no telling: ask every pair
            zero = np.zeros(channels)
            return cls(zero, zero, zero, zero, np.zeros(1), np.full(channels, np.inf), zero + 1)
        pilot, after = pilot.of_images(here), after[:, here]
        asked = float(here.sum() / len(here) * images)
        floor = np.full(channels, smallest_probability(asked, standard_error))
        fit, errors = Fit.of(pilot, after), _errors_on_others(pilot, after)
        odds = cls(**vars(fit), errors=errors, factor=floor, floor=floor)
        factor = _factors(odds.flips(pilot), floor, (AIM * standard_error) ** 2 * asked)
        odds = replace(odds, factor=factor)
        return replace(odds, floor=np.where(odds.probabilities(pilot).mean(axis=1) > SURE, 1.0, floor))

    def flips(self, predicted: FirstOrder) -> Array:
        """(channels, n) the probability that a prediction is right before and wrong after, or the reverse."""
        limits = -self.expected(predicted) / self.expected_errors(predicted)
        below, above = _chance_below(self.errors, limits), _chance_below(-self.errors[::-1], -limits)
        return np.where(predicted.margins > 0, below, above)

    def probabilities(self, predicted: FirstOrder) -> Array:
        """(channels, n) with which each pair is asked."""
        return _probabilities(self.flips(predicted), self.factor, self.floor)

    def of_channels(self, rows: Sequence[int]) -> Odds:
        """Some of the channels."""
        names = ("slope", "offset", "spread", "growth", "factor", "floor")
        of_each = {name: getattr(self, name)[list(rows)] for name in names}
        return Odds(errors=self.errors, **of_each)


def _errors_on_others(pilot: FirstOrder, after: Array) -> Array:
    """The errors of `Odds`: on each half of the images, of what the other half teaches.

    On its own images a fit errs less, most of all where it errs most.
    """
    first, found = np.arange(len(pilot.margins)) % 2 == 0, []
    for half, other in ((first, ~first), (~first, first)):
        fit, told = Fit.of(pilot.of_images(half), after[:, half]), pilot.of_images(other)
        errors = (after[:, other] - fit.expected(told)) / fit.expected_errors(told)
        moved = pilot.sizes[:, half].any(axis=1) & (fit.spread > 0)  # else there was nothing to learn from
        found.append(errors[moved])
    return np.sort(np.concatenate(found, axis=None))


def _chance_below(errors: Array, limits: Array) -> Array:
    """The probability of an error below each limit; beyond all errors met it falls as a heavy tail does."""
    chance: Array = (np.searchsorted(errors, limits) + 0.5) / (len(errors) + 1)
    lowest = min([-1e-12, *errors[:1]])
    beyond: Array = np.minimum(limits, lowest) / lowest
    return chance / beyond**TAIL


def _error_model(error: Array, sizes: Array) -> tuple[Array, Array]:
    """(channels,) spread and growth, of (channels, n) errors and the sizes of the changes they come from.

    Of the variance of a channel's errors a part, the same for the whole layer, grows with the size squared.
    """
    rms_error, rms_size = (np.sqrt((one**2).mean(axis=1)) for one in (error, sizes))
    live = (rms_error > 0) & (rms_size > 0)
    errors = (error[live] / rms_error[live, None]) ** 2 - 1
    excess = (sizes[live] / rms_size[live, None]) ** 2 - 1
    weights = (2 + excess) ** -2  # the larger, the less certain
    length = (weights * excess**2).sum()
    part = np.clip((weights * excess * errors).sum() / length, 0, MOST_GROWTH) if length > 0 else 0.0
    growth = np.zeros_like(rms_error)
    growth[live] = rms_error[live] / rms_size[live] * np.sqrt(part)
    return rms_error * np.sqrt(1 - part * live), growth


def smallest_probability(images: float, standard_error: float) -> float:
    """With which any pair is asked: one flip makes up no more than its part of the variance asked for."""
    return float(np.clip(1 / (LARGEST_PART * (standard_error * images) ** 2), FLOOR, 1.0))


def _probabilities(flips: Array, factor: Array, floor: Array) -> Array:
    # where a flip is likely, it is asked for, even if the pilot had none from which to learn a factor
    return np.clip(np.maximum(factor[:, None] * np.sqrt(flips), flips), floor[:, None], 1.0)


def _factors(flips: Array, floor: Array, budget: float) -> Array:
    """(channels,) the smallest factors that keep each channel's variance of a count within the budget.

    flips: (channels, n) of a sample of images, from which the variance per image is known to a standard
    error of its own, of which some are added.
    """
    low, high = np.full(len(flips), 1e-6), np.full(len(flips), 1e6)
    for _ in range(SEARCH_STEPS):
        middle = np.sqrt(low * high)
        asked = _probabilities(flips, middle, floor)
        variances = flips * (1 - asked) / asked
        doubt = DOUBT / np.sqrt(flips.shape[1]) * variances.std(axis=1)
        fits = variances.mean(axis=1) + doubt <= budget
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    return high


@dataclass(frozen=True, eq=False)
class Design:
    """The odds of one layer's channels, by question."""

    channels: tuple[int, ...]
    odds: Mapping[str, Odds]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """By name, as a ledger stores them."""
        return {"channels": np.array(self.channels)} | {
            f"{name}/{field}": array for name, one in self.odds.items() for field, array in vars(one).items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Design:
        """What to_arrays made."""
        found: dict[str, dict[str, Array]] = defaultdict(dict)
        for key, array in arrays.items():
            name, _, field = key.rpartition("/")
            found[name][field] = array
        channels = found.pop("")["channels"]
        return cls(tuple(channels.tolist()), {name: Odds(**fields) for name, fields in found.items()})

    def of(self, question: str, channels: Sequence[int]) -> Odds:
        """Of these channels."""
        return self.odds[question].of_channels([self.channels.index(channel) for channel in channels])


class Sample:
    """The pairs that are asked of one batch. places: (n,) of its images in the data; designs: by layer."""

    def __init__(self, designs: Mapping[str, Design], seed: int, places: npt.NDArray[np.int64]) -> None:
        self._designs, self._seed, self._places = designs, seed, places
        self._uniform: dict[str, Array] = {}

    def draw(
        self, layer: str, channels: Sequence[int], predicted: Mapping[str, FirstOrder]
    ) -> dict[str, Weighted]:
        """The same pairs for these questions, by question, with the highest probability of all."""
        odds = {name: self._designs[layer].of(name, channels) for name in predicted}
        asked = np.max([odds[name].probabilities(one) for name, one in predicted.items()], axis=0)
        drawn = self._uniforms(layer, channels) < asked
        return {
            name: Weighted(drawn & one.asked, 1 / asked, odds[name].expected(one))
            for name, one in predicted.items()
        }

    def _uniforms(self, layer: str, channels: Sequence[int]) -> Array:
        """(channels, n) numbers that belong to the pair in its batch, whoever asks and in whatever order."""
        if layer not in self._uniform:
            generator = numpy_generator(self._seed, f"sample of {layer}", int(self._places[0]))
            shape = max(self._designs[layer].channels) + 1, len(self._places)
            self._uniform = {layer: generator.random(shape)}
        return self._uniform[layer][list(channels)]
