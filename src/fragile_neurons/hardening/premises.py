"""What hardening takes for granted, and refuses in words where it is not so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np

from fragile_neurons.analysis.selection import Selection
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError
from fragile_neurons.folding import fold
from fragile_neurons.hardening.gains import Gains
from fragile_neurons.hardening.observe import CLEAN, NONE, observe_right
from fragile_neurons.honesty import enough

PROBED_IMAGES = 500
FEWEST_IMAGES = 20
HASHED_AT_ONCE = 1_000
MOST_OVERLAP = 0.01  # of the smaller split: data sets hold a few images twice


def common_site(classifier: Classifier, selection: Selection) -> str:
    """`norm` where the weights of a normalisation after each of these layers can hold gains, else `conv`."""
    if all(any(site.name == "norm" for site in layer.sites) for layer in selection.layers):
        try:
            refuse_any_unfoldable(classifier, replace(selection, site="norm"))
        except InputError:
            return "conv"
        return "norm"
    return "conv"


def refuse_any_unfoldable(classifier: Classifier, selection: Selection) -> None:
    """Raise an InputError, with the layer's name, where gains drawn at random cannot be written exactly."""
    generator = np.random.default_rng(0)
    factors = [generator.uniform(0.5, 2.0, layer.channels) for layer in selection.layers]
    fold(classifier, Gains.of_factors(selection.sites, factors).changes, selection.images)


def refuse_other_dtypes(classifier: Classifier) -> None:
    """Raise an InputError unless the network computes in float32, as its weights will."""
    if classifier.dtype != "float32":
        raise InputError(
            "gains are fitted and written in float32",
            given=f"a classifier in {classifier.dtype}",
            allowed="float32",
            fix='hand over classifier.as_dtype("float32")',
        )


def refuse_unlike(others: Mapping[str, ImageData | None], test: ImageData) -> None:
    """Raise an InputError where a split has other classes, images of another shape, or hardly any."""
    for name, other in others.items():
        if other is None:
            continue
        found, wanted = ((data.classes, tuple(data.images.shape[1:])) for data in (other, test))
        if found != wanted:
            raise InputError(
                f"{name} and test differ in their classes or in the shape of their images",
                given=f"{name}: {found[1]}, {', '.join(found[0])}",
                allowed=f"as test: {wanted[1]}, {', '.join(wanted[0])}",
                fix="bring the splits into one form; each needs a folder for every class",
            )
        if len(other) < FEWEST_IMAGES:
            raise InputError(
                f"there are too few {name} images",
                given=len(other),
                allowed=f"at least {FEWEST_IMAGES}",
                fix="give more images",
            )


def refuse_ruined(classifier: Classifier, data: ImageData, batch_size: int) -> None:
    """Raise an InputError for a network that is hardly better than chance: there is nothing to mend."""
    right = observe_right(classifier, data, CLEAN, NONE, images=PROBED_IMAGES, batch_size=batch_size, seed=0)
    least = enough(len(data.classes))
    if right.mean() < least:
        raise InputError(
            "the network is hardly better than chance",
            given=f"{100 * right.mean():.1f} % right of {right.shape[1]} {data.split} images",
            allowed=f"at least {100 * least:.0f} %, twice chance: below it there is nothing to mend",
            fix="check the weights, the normalisation and the order of the classes",
        )


def refuse_overlap(splits: Mapping[str, ImageData | None]) -> None:
    """Raise an InputError where two splits share images, in arrays: folders are taken to be apart."""
    digests = {name: _digests(data) for name, data in splits.items() if data is not None}
    for (one, first), (other, second) in combinations(digests.items(), 2):
        shared, smaller = len(first & second), min(len(first), len(second))
        if shared > MOST_OVERLAP * smaller:
            raise InputError(
                f"{one} and {other} share images",
                given=f"{shared:,} of {smaller:,} images are in both",
                allowed="disjoint images: what is chosen on an image proves nothing on it",
                fix="hand over other images",
            )


def _digests(data: ImageData) -> set[bytes]:
    """One for the pixels of each image, whatever their type; none for files that are read one by one."""
    if not isinstance(data.images, np.ndarray):
        return set()
    parts = (data[start : start + HASHED_AT_ONCE][0].numpy() for start in range(0, len(data), HASHED_AT_ONCE))
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for part in parts for image in part}
