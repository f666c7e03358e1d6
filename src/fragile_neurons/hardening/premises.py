"""What hardening takes for granted, and refuses in words where it is not so."""

from __future__ import annotations

import hashlib

import numpy as np

from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError
from fragile_neurons.folding import refuse_unfoldable
from fragile_neurons.hardening.observe import CLEAN, NONE, observe_right
from fragile_neurons.honesty import enough
from fragile_neurons.neurons import Layer

PROBED_IMAGES = 500
MOST_OVERLAP = 0.01  # of the report images: data sets hold a few images twice


def common_site(classifier: Classifier, layers: tuple[Layer, ...]) -> str:
    """`norm` where a normalisation with a scale follows each of these layers alone, else `conv`."""
    for layer in layers:
        norms = [site for site in layer.sites if site.name == "norm"]
        if not norms:
            return "conv"
        try:
            refuse_unfoldable(classifier, norms[0])
        except InputError:
            return "conv"
    return "norm"


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


def refuse_overlap(name: str, other: ImageData, test: ImageData) -> None:
    """Raise an InputError where images that are chosen or fitted on are among those of the report."""
    shared = len(_digests(other) & _digests(test))
    if shared > MOST_OVERLAP * len(test):
        raise InputError(
            f"{name} and test share images",
            given=f"{shared:,} of {len(test):,} test images are in {name} too",
            allowed="disjoint images: what is chosen on an image proves nothing on it",
            fix="hand over other images",
        )


def _digests(data: ImageData) -> set[bytes]:
    """One for each image; none for images that are read one by one from a folder, whose splits are apart."""
    if not isinstance(data.images, np.ndarray):
        return set()
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in data.images}
