"""A data set known by name: what it is, where its files come from, how a split is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fragile_neurons.data.images import ImageData, stratified_sample
from fragile_neurons.data.sources import Source, data_root, fetch_files, missing_files
from fragile_neurons.errors import MissingSplitError

VAL_SEED = 0  # part of every data set's definition here: the bundled weights never saw these images

ImagesAndLabels = tuple[npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(frozen=True)
class Dataset:
    """Real images with a training and a test set, checked against published checksums.

    sizes: images per split; val is drawn from the authors' training set, seeded and stratified.
    mean, std: of the training pixels, per channel. epsilons: the budgets people attack it with.
    mirrors: whether a shifted or mirrored image keeps its class. checksums: sha256 per file name.
    read: from a folder and a stem (train, test, val) to uint8 images (n, channels, height, width)
    and labels. bundled: a folder that has some of the splits already.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    sizes: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epsilons: tuple[str, ...]
    licence: str
    mirrors: bool
    place: str
    checksums: Mapping[str, str]
    files: Callable[[str], tuple[str, ...]]
    read: Callable[[Path, str], ImagesAndLabels]
    sources: Callable[[Path | None], list[Source]]
    bundled: Path | None = None
    bundled_splits: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the fetched files lie."""
        return data_root() / self.place

    @property
    def is_fetched(self) -> bool:
        """Whether every file is on this machine, and as it should be."""
        return not missing_files(self.folder, self.checksums)

    def fetch(self, say: Callable[[str], None], local: Path | None = None) -> None:
        """Make the whole data set available, from `local` and else from the first source that answers."""
        fetch_files(self.name, self.folder, self.checksums, self.sources(local), say)

    def load(self, split: str) -> ImageData:
        """A whole split in its canonical order; raises InputError if it is neither bundled nor fetched."""
        if self.bundled is not None and split in self.bundled_splits:
            images, labels = self.read(self.bundled, split)
        else:
            images, labels = self.whole("test" if split == "test" else "train", wanted=split)
            if split != "test":
                rows = self.val_rows(labels)
                if split == "train":
                    rows = np.setdiff1d(np.arange(len(labels)), rows)
                images, labels = images[rows], labels[rows]
        return ImageData(images, labels.astype(np.int64), self.classes, name=self.name, split=split)

    def whole(self, part: str, *, wanted: str) -> ImagesAndLabels:
        """The images and labels that the authors call their training or test set."""
        missing = missing_files(self.folder, {name: self.checksums[name] for name in self.files(part)})
        if missing:
            bundled = " and ".join(f"--split {split}" for split in self.bundled_splits)
            raise MissingSplitError(
                f"the {wanted} images of {self.name} are not on this machine",
                given=f"{self.folder} without {', '.join(missing)}",
                allowed=f"{bundled}, which are bundled; {wanted} once it is fetched"
                if bundled
                else "a data set that is fetched",
                fix=f"run: fragile-neurons data fetch {self.name}",
            )
        return self.read(self.folder, part)

    def val_rows(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Positions of the validation images within the authors' training set, ascending."""
        return np.sort(stratified_sample(labels.astype(np.int64), self.sizes["val"], VAL_SEED))
