"""What every sweep returns: the effect of each single drop on each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Dropped:
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

    @classmethod
    def join_images(cls, parts: Sequence[Dropped]) -> Dropped:
        """The same neurons on more images."""
        return cls._join(parts, axis=-2)

    @classmethod
    def join_neurons(cls, parts: Sequence[Dropped]) -> Dropped:
        """More neurons on the same images."""
        return cls._join(parts, axis=-1)

    def first_images(self, count: int) -> Dropped:
        """The first images alone, without the filling of a batch."""
        return Dropped(**{field.name: getattr(self, field.name)[..., :count, :] for field in fields(self)})

    @classmethod
    def _join(cls, parts: Sequence[Dropped], axis: int) -> Dropped:
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], axis) for name in names})
