"""Images and labels in .npz files."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest

from fragile_neurons import ImageData, InputError, load_data
from fragile_neurons.data.catalogue import count_images

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 5, 4), dtype=np.uint8)
LABELS = np.arange(12) % 3


def load(path: Path, **options: Any) -> ImageData:
    return load_data(f"npz:{path}", **options)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


def in_order(data: ImageData) -> ImageData:
    """The images in the order of the split, not of the sample."""
    return data.take(np.argsort(data.indices))


# -- what is read


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["<i8", ">i4", "u1", "u8"])
def test_pixels_and_labels_are_those_of_the_file(
    tmp_path: Path, write: Callable[..., None], kind: str
) -> None:
    write(tmp_path / "data.npz", images=IMAGES, labels=LABELS.astype(kind))
    data = in_order(load(tmp_path / "data.npz"))
    assert np.array_equal(np.asarray(data.images), IMAGES)
    assert np.array_equal(data.labels, LABELS)
    assert data.classes == ("0", "1", "2")
    assert data.sha256 == ImageData(IMAGES, LABELS, ("0", "1", "2")).sha256
    assert count_images(f"npz:{tmp_path / 'data.npz'}", "test") == 12


def test_each_split_has_its_own_arrays(tmp_path: Path) -> None:
    splits = {"test": slice(0, 6), "val": slice(6, 12)}
    arrays: dict[str, np.ndarray] = {"images": IMAGES[::-1], "labels": LABELS[::-1]}
    for split, rows in splits.items():
        arrays |= {f"{split}_images": IMAGES[rows], f"{split}_labels": LABELS[rows]}
    path = save(tmp_path, **arrays)
    for split, rows in splits.items():
        data = in_order(load(path, split=split))
        assert np.array_equal(np.asarray(data.images), IMAGES[rows])
        assert data.split == split
    with pytest.raises(InputError, match=r"has no split train\n +given: +keys images, labels, test_images"):
        load(path, split="train")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("images",), r"has no labels\n +given: +keys images\n"),
        (("labels",), r"has no images\n +given: +keys labels\n"),
        ((), r"has no images\n +given: +keys \(none\)\n"),
        (("train_images", "train_labels"), r"has no images\n +given: +keys train_images, train_labels\n"),
        (("test_images", "labels"), r"has no test_labels\n +given: +keys test_images, labels\n"),
    ],
)
def test_arrays_that_are_not_there_are_named(tmp_path: Path, keys: tuple[str, ...], expected: str) -> None:
    path = save(tmp_path, **{key: IMAGES if "images" in key else LABELS for key in keys})
    with pytest.raises(InputError, match=expected + r" +allowed: +images \(n.*\n +fix: +write it with np\."):
        load(path)


def test_grey_images_need_no_channels(tmp_path: Path) -> None:
    data = in_order(load(save(tmp_path, images=IMAGES[:, 0], labels=LABELS)))
    assert np.array_equal(np.asarray(data.images), IMAGES[:, :1])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_in_the_unit_interval_are_pixels(tmp_path: Path, kind: type) -> None:
    images, _ = in_order(load(save(tmp_path, images=(IMAGES / 255).astype(kind), labels=LABELS)))[:]
    expected, _ = ImageData(IMAGES, LABELS, ("a", "b", "c"))[:]
    assert images.dtype == expected.dtype
    assert (images - expected).abs().max() < 1e-7


@pytest.mark.parametrize("names", [["a b", "é", "猫"], [b"a b", "é".encode(), "猫".encode()]])
def test_classes_have_names(tmp_path: Path, names: list[Any]) -> None:
    path = save(tmp_path, images=IMAGES, labels=LABELS, classes=np.array(names))
    assert load(path).classes == ("a b", "é", "猫")


def test_class_0_may_be_absent_where_the_classes_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, images=IMAGES, labels=LABELS + 1, classes=np.array(list("abcd")))
    assert sorted(set(load(path).labels.tolist())) == [1, 2, 3]


# -- values that cannot be analysed

UNIT = (IMAGES / 255).astype(np.float32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "floats to 255": ({"images": UNIT * 255}, r"outside \[0, 1\]\n.*0 to 255\n.*\n.*divide by 255"),
    "doubles to 255": ({"images": UNIT.astype(float) * 255}, r"outside \[0, 1\]\n.*\n.*\n.*divide by 255"),
    "negative pixels": ({"images": UNIT - 0.5}, r"outside \[0, 1\]\n.*-0\.5 to 0\.5\n.*\n.*unnormalised"),
    "not a number": ({"images": UNIT * np.nan}, r"outside \[0, 1\]\n.*nan"),
    "beyond float32": ({"images": UNIT.astype(float) * 1e300}, r"outside \[0, 1\]\n.*0 to inf\n"),
    "16 bits": ({"images": IMAGES.astype(np.uint16)}, r"wrong shape or type\n.*uint16 \(12, 3, 5, 4\)"),
    "flat images": ({"images": IMAGES.reshape(12, -1)}, r"wrong shape or type\n.*uint8 \(12, 60\)"),
    "channels last": (
        {"images": IMAGES.transpose(0, 2, 3, 1)},
        r"channels last\n.*\(12, 5, 4, 3\)\n.*\n.*transpose\(0, 3, 1, 2\)",
    ),
    "float labels": ({"labels": LABELS / 1}, r"not class numbers\n.*float64 \(12,\)"),
    "one-hot": ({"labels": np.eye(3, dtype=int)[LABELS]}, r"not class numbers\n.*int64 \(12, 3\)"),
    "text": ({"labels": LABELS.astype(str)}, r"not class numbers\n.*<U\d+ \(12,\)"),
    "truth": ({"labels": LABELS > 0}, r"not class numbers\n.*bool"),
    "one label": ({"labels": np.array(3)}, r"not class numbers\n.*int64 \(\)"),
    "no labels": ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"not class numbers\n.*int64 \(0,\)"),
    "too few labels": ({"labels": LABELS[:11]}, r"do not fit the images\n.*\(11,\) for 12 images"),
    "negative": ({"labels": LABELS - 1}, r"out of range\n.*-1 to 1\n.*0 to 1"),
    "all negative": ({"labels": LABELS - 9}, r"not class numbers\n.*up to -7"),
    "more than the classes": (
        {"classes": np.array(["a", "b"])},
        r"out of range\n.*0 to 2\n.*0 to 1, for 2 classes\n.*number the classes from 0",
    ),
    "int64 overflow": ({"labels": LABELS + 2**62}, r"not class numbers\n.*int64 .*up to 4611686018427387906"),
    "uint64": ({"labels": np.full(12, 2**64 - 1, np.uint64)}, r"class numbers\n.*up to 18446744073709551615"),
    "100,001 classes": ({"labels": LABELS * 50_000}, r"not class numbers\n.*up to 100000 "),
    "counted from 1": (
        {"labels": LABELS + 1},
        r"no image has label 0\n.*labels 1 to 3 in .*\n.*from 0\n.*subtract 1.*`classes`",
    ),
    "100,001 names": ({"classes": np.zeros(100_001, "S1")}, r"too many classes\n.*100,001 in"),
}


@pytest.mark.parametrize("case", BAD)
def test_values_that_cannot_be_analysed_are_refused(tmp_path: Path, case: str) -> None:
    changed, expected = BAD[case]
    path = save(tmp_path, **{"images": IMAGES, "labels": LABELS, **changed})
    with pytest.raises(InputError, match=expected) as error:
        load(path)
    assert [line.split()[0] for line in str(error.value).split("\n")[1:]] == ["given:", "allowed:", "fix:"]


# -- files that are not what they say


class Plant:
    """What would create a file if it were unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def npy(shape: str, kind: str = "|u1", values: bytes = bytes(12)) -> bytes:
    """An .npy file written by hand from its format: magic, version, length, header, values."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + pack("<H", len(header)) + header + values


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def content(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("key", ["images", "labels", "classes", "something"])
def test_objects_are_never_unpickled(tmp_path: Path, key: str) -> None:
    planted = np.array([Plant(tmp_path / "marker")] * 12, object)
    path = save(tmp_path, **{"images": IMAGES, "labels": LABELS, key: planted})
    with pytest.raises(InputError, match=r"cannot be read|claims more values"):
        load(path)
    assert not (tmp_path / "marker").exists()
    np.load(path, allow_pickle=True)[key]  # which it would have done
    assert (tmp_path / "marker").exists()


def test_a_bomb_is_refused_before_it_expands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy("(1048576, 1, 32, 32)", values=b""))
        for _ in range(64):
            file.write(bytes(2**24))
    assert path.stat().st_size < 2**23  # for 2**30 bytes

    def expand(*arguments: object) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(zipfile.ZipFile, "open", expand)
    with pytest.raises(InputError, match=r"would expand too far\n.*data\.npz, [\d,]+ bytes\n"):
        load(path)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [("(13,)", "|u1"), ("(1000000000000,)", "|u1"), ("(1000000000000,)", "<U0"), ("(2, 2)", "<f4"),
     ("(1,)", "|V2147483647"), ("(4611686018427387904, 4)", "|u1")],
)  # fmt: skip
def test_a_header_may_not_claim_more_than_its_member_holds(tmp_path: Path, shape: str, kind: str) -> None:
    labels = {"labels.npy": content(LABELS)}
    packed(tmp_path / "data.npz", {"images.npy": npy(shape, kind, bytes(12))} | labels)
    with pytest.raises(InputError, match=r"claims more values than the file|cannot be read"):
        load(tmp_path / "data.npz")


def unreadable(path: Path, how: str) -> None:
    whole = {"images.npy": content(IMAGES), "labels.npy": content(LABELS)}
    packed(path, whole)
    intact = path.read_bytes()
    match how:
        case "cut short":
            path.write_bytes(intact[:-30])
        case "one byte changed":
            path.write_bytes(intact[:400] + bytes([intact[400] ^ 1]) + intact[401:])
        case "empty":
            path.write_bytes(b"")
        case "a folder" | "missing":
            path.unlink()
            if how == "a folder":
                path.mkdir()
        case "one array":
            path.write_bytes(content(IMAGES))
        case "not an array":
            packed(path, whole | {"readme.txt": b"hello"})


@pytest.mark.parametrize(
    "how", ["cut short", "one byte changed", "empty", "a folder", "missing", "one array", "not an array"]
)
def test_a_file_that_is_no_archive_of_arrays_is_refused(tmp_path: Path, how: str) -> None:
    unreadable(tmp_path / "data.npz", how)
    with pytest.raises(InputError, match=r"cannot be read\n.*data\.npz: .+\n.*uint8.*\n.*np\.savez\(path"):
        load(tmp_path / "data.npz")


def test_names_that_lead_out_of_the_folder_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    members = {"images.npy": content(IMAGES), "labels.npy": content(LABELS), "../../out.npy": npy("(12,)")}
    packed(tmp_path / "a" / "b" / "data.npz", members)
    assert np.array_equal(np.asarray(in_order(load(tmp_path / "a" / "b" / "data.npz")).images), IMAGES)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "data.npz"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="this is not a file"):
        load_data(f"npz:{tmp_path / 'pipe.npz'}")
