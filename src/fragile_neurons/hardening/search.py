"""The proportional rule by other scores and strengths, screened on validation images."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import numpy.typing as npt

from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.folding import fold
from fragile_neurons.hardening.gains import Gains, Strength
from fragile_neurons.hardening.observe import CLEAN, FGSM, NONE, observe_right

SCORES = {
    "clean": "clean_drop",
    "adv": "adv_drop",
    "margin": "margin_drop",
    "share": "share",
    "excess": "excess",
    "rescue": "rescue",
}
"""What a neuron can be judged by: the columns of neurons.csv."""

CLEAN_SCORES = {"clean", "margin"}
SCORED_IMAGES = 1_000

STEPS = (0.0, 0.25, 0.5, 0.75)
STRENGTHS = tuple(
    Strength(amplify, compress, sign)
    for amplify, compress, sign in product(STEPS, STEPS, (1, -1))
    if amplify or compress
)
SCREENED_IMAGES = 256
FINALISTS = 6


def scores_needed(rule: str, score: str) -> set[str]:
    """What a rule scores the neurons by; `score`: the one that the proportional rule was told."""
    return {"learned": set(), "searched": set(SCORES), "proportional": {score}}[rule]


def screen(
    original: Classifier,
    candidates: Sequence[Gains],
    data: ImageData,
    epsilon: Fraction,
    *,
    batch_size: int,
    seed: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """clean, fgsm: accuracy of each candidate on the first images, minus the original's."""
    images = data[:8][0].to(original.device)
    rows = []
    for gains in (None, *candidates):
        network = original if gains is None else fold(original, gains.changes, images)
        rows.append(
            [
                observe_right(
                    network, data, attack, budgets, images=SCREENED_IMAGES, batch_size=batch_size, seed=seed
                ).mean()
                for attack, budgets in ((CLEAN, NONE), (FGSM, [epsilon]))
            ]
        )
    clean, fgsm = (np.array(rows)[1:] - np.array(rows)[0]).T
    return {"clean": clean, "fgsm": fgsm}


def finalists(screened: Sequence[dict[str, npt.NDArray[np.float64]]], budget: float) -> list[tuple[int, int]]:
    """The candidates, as (score, strength), that gain most under FGSM within the budget, the best first."""
    clean = np.stack([one["clean"] for one in screened])
    fgsm = np.where(clean >= -budget, np.stack([one["fgsm"] for one in screened]), -np.inf)
    order = np.argsort(-fgsm.ravel(), kind="stable")[:FINALISTS]
    places = [divmod(int(place), fgsm.shape[1]) for place in order]
    return [place for place in places if np.isfinite(fgsm[place])]
