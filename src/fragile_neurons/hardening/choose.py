"""Which of several changes to take: chosen on validation images, under a budget on clean accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.hardening.observe import CLEAN, NONE, SHORT_PGD, observe_right
from fragile_neurons.hardening.verdict import ROUNDING, BoolArray

STRENGTHS = (1.0, 0.75, 0.5, 0.25)
SHRINKING = (1.0, 0.5, 0.25)  # of a control
CLEAN_IMAGES, ATTACKED_IMAGES = 2_000, 500


@dataclass(frozen=True, eq=False)
class Tried:
    """What changes reach on validation images, the original first.

    clean: (1 + changes, n) right. attacked: (1 + changes, m) right under PGD-10; (0, 0) if only clean
    accuracy was asked for.
    """

    clean: BoolArray
    attacked: BoolArray

    def best(self, budget: float) -> int | None:
        """The change that is most robust within the budget on clean accuracy, the first of equals.

        None if none is within the budget or none more robust than the original. Where no attack was tried,
        the first within the budget.
        """
        kept = self.clean[0].mean() - self.clean[1:].mean(axis=1) <= budget + ROUNDING
        if not len(self.attacked):
            return int(np.argmax(kept)) if kept.any() else None
        gained = self.attacked[1:].mean(axis=1) - self.attacked[0].mean()
        best = int(np.argmax(np.where(kept, gained, -np.inf)))
        return best if kept[best] and gained[best] > 0 else None


def try_changes(
    original: Classifier,
    changes: Sequence[Callable[[], Classifier]],
    data: ImageData,
    epsilon: Fraction | None,
    *,
    batch_size: int,
    seed: int,
) -> Tried:
    """Clean accuracy of each change on validation images, and under PGD-10 unless epsilon is None."""
    clean, attacked = [], []
    span = {"batch_size": batch_size, "seed": seed}
    for change in (lambda: original, *changes):
        network = change()
        clean.append(observe_right(network, data, CLEAN, NONE, images=CLEAN_IMAGES, **span)[0])
        if epsilon is not None:
            attacked.append(
                observe_right(network, data, SHORT_PGD, [epsilon], images=ATTACKED_IMAGES, **span)[0]
            )
    return Tried(np.stack(clean), np.stack(attacked) if attacked else np.zeros((0, 0), np.bool_))
