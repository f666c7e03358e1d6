"""Labelled images, in the order in which they are analysed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.errors import InputError

SMALLEST_LIMIT = 10
HASHED_AT_ONCE = 256


class Images(Protocol):
    """An array, or what can be read as one part after the other."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images with labels: `data[a:b]` gives float32 images in [0, 1] and int64 labels.

    images: uint8 (n, channels, height, width), or float32 in [0, 1] of the same shape; an array, or
    what slices to a part of itself and becomes one by np.asarray, as FolderImages does.
    labels: (n,) integers, places in `classes`. positions: (n,) places in the whole split.
    excluded: files that were left out, and why. is_mixed: they are in a random order.
    """

    images: Images
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    name: str = "arrays"
    split: str = "test"
    positions: npt.NDArray[np.int64] | None = None
    excluded: tuple[str, ...] = ()
    is_mixed: bool = False

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        _check(self.images, labels, self.classes)
        object.__setattr__(self, "labels", labels.astype(np.int64))

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
        digest = hashlib.sha256()
        for start in range(0, len(self), HASHED_AT_ONCE):
            digest.update(np.ascontiguousarray(self.images[start : start + HASHED_AT_ONCE]).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def take(self, rows: npt.NDArray[np.int64]) -> ImageData:
        """The images at these positions, in this order."""
        return replace(self, images=self.images[rows], labels=self.labels[rows], positions=self.indices[rows])

    def sample(self, limit: int | None, seed: int) -> ImageData:
        """A seeded stratified sample of `limit` images (all if None), in a seeded random order.

        The order is random so that a batch is a random sample too, whatever order a source has.
        """
        sampled = self.take(sample_rows(self.labels, limit, seed, f"{self.name} {self.split}"))
        return replace(sampled, is_mixed=True)

    def mixed(self, seed: int) -> ImageData:
        """In a seeded random order, so that the first images are a sample; as they are if they are in one."""
        return self if self.is_mixed or not len(self) else self.sample(None, seed)


def sample_rows(
    labels: npt.NDArray[np.int64], limit: int | None, seed: int, source: str
) -> npt.NDArray[np.int64]:
    """Positions of a stratified sample of `limit` images, or of all; raises InputError out of range."""
    smallest = min(SMALLEST_LIMIT, len(labels))
    if limit is not None and not smallest <= limit <= len(labels):
        raise InputError(
            "limit is out of range",
            given=limit,
            allowed=f"{smallest} to {len(labels)}, the images in {source}",
            fix="leave --limit out for the default, or give a number in the range",
        )
    return stratified_sample(labels, len(labels) if limit is None else limit, seed)


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


def _check(images: Images, labels: npt.NDArray[Any], classes: tuple[str, ...]) -> None:
    if len(images.shape) != 4 or 0 in images.shape[1:] or images.dtype not in (np.uint8, np.float32):
        raise InputError(
            "the images have the wrong shape or type",
            given=f"{images.dtype} {images.shape}",
            allowed="uint8, or float32 in [0, 1], of shape (n, channels, height, width)",
            fix="convert the array before handing it over",
        )
    if min(images.shape[1:3]) > images.shape[3] and images.shape[3] in (1, 3):
        raise InputError(
            "the images have their channels last",
            given=images.shape,
            allowed="(n, channels, height, width)",
            fix="hand over images.transpose(0, 3, 1, 2)",
        )
    if images.dtype == np.float32 and len(images):
        pixels = np.asarray(images)
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                "the pixels lie outside [0, 1]",
                given=f"{low:g} to {high:g}",
                allowed="0 to 1; the normalisation belongs to the classifier",
                fix="divide by 255"
                if low >= 0 and high > 2
                else "hand over unnormalised images, and mean and std to Classifier",
            )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            "the labels do not fit the images",
            given=f"{labels.dtype} {labels.shape} for {len(images)} images",
            allowed="one integer per image",
            fix="hand over class numbers, not one-hot rows",
        )
    if len(set(classes)) < len(classes):
        raise InputError(
            "two classes have the same name",
            given=", ".join(sorted({name for name in classes if classes.count(name) > 1})),
            allowed="a name of its own for each class",
            fix="rename them: results are reported by name",
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise InputError(
            "a label is out of range",
            given=f"{labels.min()} to {labels.max()}",
            allowed=f"0 to {len(classes) - 1}, for {len(classes)} classes",
            fix="number the classes from 0",
        )
