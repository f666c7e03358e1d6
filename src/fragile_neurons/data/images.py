"""Labelled images in memory, in the order in which they are analysed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.errors import InputError

SMALLEST_LIMIT = 10


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images with labels: `data[a:b]` gives float32 images in [0, 1] and int64 labels.

    images: uint8 (n, channels, height, width), or float32 in [0, 1] of the same shape.
    labels: (n,) integers, places in `classes`. positions: (n,) places in the whole split.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    name: str = "arrays"
    split: str = "test"
    positions: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _check(self.images, self.labels, self.classes)
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """(n,) the place of each image in the whole split; `positions`, or their order if not given."""
        return np.arange(len(self)) if self.positions is None else self.positions

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.array(self.images[rows], order="C"))
        if images.dtype == torch.uint8:
            images = images.float() / 255.0
        return images, torch.from_numpy(self.labels[rows].copy())

    @cached_property
    def sha256(self) -> str:
        """The checksum of the decoded images and labels, in this order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def take(self, rows: npt.NDArray[np.int64]) -> ImageData:
        """The images at these positions, in this order."""
        return replace(self, images=self.images[rows], labels=self.labels[rows], positions=self.indices[rows])

    def sample(self, limit: int | None, seed: int) -> ImageData:
        """A seeded stratified sample of `limit` images (all if None), in a seeded random order.

        The order is random so that a batch is a random sample too, whatever order a source has.
        """
        if limit is None:
            limit = len(self)
        elif not SMALLEST_LIMIT <= limit <= len(self):
            raise InputError(
                "limit is out of range",
                given=limit,
                allowed=f"{SMALLEST_LIMIT} to {len(self)}, the images in {self.name} {self.split}",
                fix="leave --limit out for the default, or give a number in the range",
            )
        return self.take(stratified_sample(self.labels, limit, seed))


def stratified_sample(labels: npt.NDArray[np.int64], size: int, seed: int) -> npt.NDArray[np.int64]:
    """Positions of `size` images, classes in their own proportions (largest remainders), seeded."""
    order, reorder = (
        _seeded_order(count, [seed, purpose]) for purpose, count in enumerate((len(labels), size))
    )
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (size / len(labels))
    quota = np.floor(exact).astype(np.int64)
    largest_first = np.argsort(quota - exact, kind="stable")
    quota[largest_first[: size - quota.sum()]] += 1
    chosen = [order[labels[order] == label][:count] for label, count in zip(classes, quota, strict=True)]
    return np.concatenate(chosen)[reorder]


def _seeded_order(count: int, seed: list[int]) -> npt.NDArray[np.int64]:
    """A random order from raw bits, which NumPy promises to keep the same; its shuffles it does not."""
    return np.argsort(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count), kind="stable")


def _check(images: npt.NDArray[Any], labels: npt.NDArray[Any], classes: tuple[str, ...]) -> None:
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise InputError(
            "the images have the wrong shape or type",
            given=f"{images.dtype} {images.shape}",
            allowed="uint8, or float32 in [0, 1], of shape (n, channels, height, width)",
            fix="convert the array before handing it over",
        )
    if images.dtype == np.float32 and images.size and not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            "the pixels lie outside [0, 1]",
            given=f"{images.min():g} to {images.max():g}",
            allowed="0 to 1; the normalisation belongs to the classifier",
            fix="hand over unnormalised images, and mean and std to Classifier",
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            "the labels do not fit the images",
            given=f"{labels.dtype} {labels.shape} for {len(images)} images",
            allowed="one integer per image",
            fix="hand over class numbers, not one-hot rows",
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise InputError(
            "a label is out of range",
            given=f"{labels.min()} to {labels.max()}",
            allowed=f"0 to {len(classes) - 1}, for {len(classes)} classes",
            fix="number the classes from 0",
        )
