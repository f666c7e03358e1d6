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

STRENGTHS = tuple(tenth / 10 for tenth in range(10, 0, -1))
SHRINKING = (1.0, 0.5, 0.25)  # of a control
CLEAN_IMAGES, ATTACKED_IMAGES = 5_000, 500
CONTROL_IMAGES = 2_000  # clean ones, of a control
ATTACKED_CHANGES = 4


@dataclass(frozen=True, eq=False)
class Tried:
    """What changes reach on validation images, the original first.

    clean: (1 + changes, n) right. attacked: (1 + attacked changes, m) right under PGD-10; which: those
    changes, in order, none if only clean accuracy was asked for.
    """

    clean: BoolArray
    attacked: BoolArray
    which: tuple[int, ...]

    def best(self) -> int | None:
        """The most robust of the changes that were attacked, the first of equals; None if none helps."""
        gained = self.attacked[1:].sum(axis=1) - int(self.attacked[0].sum())
        return self.which[int(np.argmax(gained))] if (gained > 0).any() else None

    def shrunk(self, budget: float) -> int:
        """The first change within the budget on clean accuracy, the last one if none is."""
        within = keeping(self.clean, budget, errors=0.0)
        return within[0] if within else len(self.clean) - 2


def keeping(clean: BoolArray, budget: float, *, errors: float = 1.0) -> list[int]:
    """The changes that lose clean accuracy within the budget, so many standard errors besides.

    The first row is the original. Without that margin a change chosen at the edge of the budget would break
    it on new images half of the time.
    """
    loss = clean[0].astype(np.float64) - clean[1:]
    error = loss.std(axis=1) / np.sqrt(clean.shape[1])
    return [int(place) for place in np.flatnonzero(loss.mean(axis=1) + errors * error <= budget + ROUNDING)]


def try_changes(
    original: Classifier,
    changes: Sequence[Callable[[], Classifier]],
    data: ImageData,
    epsilon: Fraction | None,
    *,
    budget: float,
    batch_size: int,
    seed: int,
) -> Tried:
    """Clean accuracy of each change on validation images; the first that keep the budget are attacked.

    epsilon: of PGD-10; None: nothing is attacked. changes come in the order of their promise, as strengths
    from the largest down.
    """
    span = {"batch_size": batch_size, "seed": seed}
    everyone = (lambda: original, *changes)
    images = CONTROL_IMAGES if epsilon is None else CLEAN_IMAGES
    clean = np.stack(
        [observe_right(change(), data, CLEAN, NONE, images=images, **span)[0] for change in everyone]
    )
    if epsilon is None:
        return Tried(clean, np.zeros((0, 0), np.bool_), ())
    which = tuple(keeping(clean, budget)[:ATTACKED_CHANGES])
    attacked = [
        observe_right(change(), data, SHORT_PGD, [epsilon], images=ATTACKED_IMAGES, **span)[0]
        for change in (everyone[0], *(changes[place] for place in which))
    ]
    return Tried(clean, np.stack(attacked), which)
