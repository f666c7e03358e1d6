"""What every sweep returns: what each single neuron does to each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


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
    """

    clean_right: Bools
    clean_margin: Floats
    clean_move: Floats
    transfer_right: Bools
    transfer_margin: Floats
    transfer_move: Floats
    adv_right: Bools
    adv_margin: Floats
    zero_gradient: Bools


@dataclass(frozen=True, eq=False)
class Patched(Observed):
    """(epsilons, images, neurons), True only among the images that were asked.

    rescued: of the fooled, right again when the neuron alone has its clean map in the adversarial
    pass. broken: of those right clean, wrong when it alone has its adversarial map in the clean pass.
    """

    rescued: Bools
    broken: Bools
