"""What every sweep returns: what each single neuron does to each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Self

import numpy as np
import numpy.typing as npt

from fragile_neurons.norms import format_epsilon

Floats = npt.NDArray[np.float32]
Right = npt.NDArray[np.bool_] | Floats

CLEAN, TRANSFER, ADAPTIVE, RESCUE, INJECT = "clean", "transfer", "adaptive", "rescue", "inject"


def question_names(epsilons: Sequence[Fraction]) -> dict[str, list[str]]:
    """What the questions under attack are called, one for each epsilon, by kind."""
    kinds = (TRANSFER, ADAPTIVE, RESCUE, INJECT)
    return {kind: [f"{kind} {format_epsilon(epsilon)}" for epsilon in epsilons] for kind in kinds}


@dataclass(frozen=True, eq=False)
class Observed:
    """Arrays of which the last axes are (images, neurons)."""

    @classmethod
    def join_images(cls, parts: Sequence[Self]) -> Self:
        """The same neurons on more images."""
        return cls._join(parts, axis=-2)

    @classmethod
    def join_neurons(cls, parts: Sequence[Self]) -> Self:
        """More neurons on the same images."""
        return cls._join(parts, axis=-1)

    def first_images(self, count: int) -> Self:
        """The first images alone, without the filling of a batch."""
        return type(self)(**{field.name: getattr(self, field.name)[..., :count, :] for field in fields(self)})

    def of_neurons(self, places: npt.NDArray[np.int64]) -> Self:
        """The neurons at these places alone."""
        return type(self)(**{field.name: getattr(self, field.name)[..., places] for field in fields(self)})

    @classmethod
    def _join(cls, parts: Sequence[Self], axis: int) -> Self:
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], axis) for name in names})


@dataclass(frozen=True, eq=False)
class Dropped(Observed):
    """Predictions with one neuron dropped at a time; the last axes are (images, neurons).

    right: classified right. margin: true logit minus best other. move: largest change of a logit.
    clean_*: on the images; transfer_*: (epsilons, ...), on FGSM images made on the whole network;
    adv_*: (epsilons, ...), on FGSM images made anew on the network without the neuron, no epsilons
    where that was not asked for. zero_gradient: the dropped network's gradient vanishes on the image.

    Of a sample of pairs these are estimates (sweeps/answers.py), right and zero_gradient numbers of which
    the means are unbiased, move infinite where the map moves. heaviest: (batches, neurons), the largest
    weight of a pair; 1 where all were asked.
    """

    clean_right: Right
    clean_margin: Floats
    clean_move: Floats
    clean_heaviest: Floats
    transfer_right: Right
    transfer_margin: Floats
    transfer_move: Floats
    transfer_heaviest: Floats
    adv_right: Right
    adv_margin: Floats
    adv_heaviest: Floats
    zero_gradient: Right

    def margins(self, epsilons: Sequence[Fraction]) -> dict[str, Floats]:
        """(images, neurons) by the question that was asked."""
        names = question_names(epsilons)
        return (
            {CLEAN: self.clean_margin}
            | dict(zip(names[TRANSFER], self.transfer_margin, strict=True))
            | dict(zip(names[ADAPTIVE], self.adv_margin, strict=False))
        )

    def refined(self, places: npt.NDArray[np.int64], others: Dropped) -> Dropped:
        """The same, with the answers of others on the images themselves for the neurons at these places."""
        clean = {field.name for field in fields(self) if field.name.startswith(CLEAN)}
        columns = {name: array.copy() if name in clean else array for name, array in vars(self).items()}
        for name in clean:
            columns[name][..., places] = getattr(others, name)
        return Dropped(**columns)


@dataclass(frozen=True, eq=False)
class Patched(Observed):
    """(epsilons, images, neurons), above 0 only among the images that were asked.

    rescued: of the fooled, right again when the neuron alone has its clean map in the adversarial
    pass. broken: of those right clean, wrong when it alone has its adversarial map in the clean pass; of a
    sample the weights of the pairs for which it is so. margin: true logit minus best other. heaviest: as
    of Dropped.
    """

    rescued: Right
    rescued_margin: Floats
    rescued_heaviest: Floats
    broken: Right
    broken_margin: Floats
    broken_heaviest: Floats

    def margins(self, epsilons: Sequence[Fraction]) -> dict[str, Floats]:
        """(images, neurons) by the question that was asked."""
        names = question_names(epsilons)
        return dict(zip(names[RESCUE], self.rescued_margin, strict=True)) | dict(
            zip(names[INJECT], self.broken_margin, strict=True)
        )
