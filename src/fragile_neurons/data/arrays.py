"""Images and labels in an .npz file; nothing in it is unpickled, nothing is larger than its file allows."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError, MissingSplitError

MOST_EXPANSION = 50  # images hardly shrink more under deflate; a bomb grows a thousandfold
SMALL_BYTES = 64 * 2**20  # what may expand without limit
MOST_CLASSES = 100_000
ALLOWED = (
    "images (n, channels, height, width) or (n, height, width), uint8 or float32 in [0, 1]; labels (n,) "
    "integers; classes (names) optional; or test_images, test_labels and so on for splits"
)


def load_npz(path: Path, *, split: str) -> ImageData:
    """The images and labels of a split: `images` and `labels`, or `test_images` and `test_labels`, ..."""
    arrays = _read(path)
    prefix = f"{split}_" if f"{split}_images" in arrays else ""
    if not prefix and split != "test":
        raise MissingSplitError(
            f"{path} has no split {split}",
            given=f"keys {', '.join(arrays)}",
            allowed=ALLOWED,
            fix=f"add arrays {split}_images and {split}_labels",
        )
    for key in (f"{prefix}images", f"{prefix}labels"):
        if key not in arrays:
            raise _unusable(f"{path} has no {key}", f"keys {', '.join(arrays) or '(none)'}")
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.ndim == 3:
        images = images[:, None]
    if images.dtype == np.float64:
        with np.errstate(over="ignore"):  # what becomes infinite is refused as a pixel
            images = images.astype(np.float32)
    numbers = labels.dtype.kind in "iu" and labels.ndim == 1 and len(labels)
    if not numbers or not 0 <= labels.max() < MOST_CLASSES:
        most = f", up to {labels.max()}" if labels.dtype.kind in "iu" and labels.size else ""
        raise _unusable("the labels are not class numbers", f"{labels.dtype} {labels.shape}{most} in {path}")
    if "classes" in arrays:
        names = arrays["classes"].ravel()
        if len(names) > MOST_CLASSES:
            raise _unusable("there are too many classes", f"{len(names):,} in {path}")
        classes = tuple(
            one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in names
        )
    elif labels.min() == 1:
        raise InputError(
            "no image has label 0",
            given=f"labels {labels.min()} to {labels.max()} in {path}",
            allowed="classes numbered from 0",
            fix="subtract 1 from the labels, or add an array `classes` of names if class 0 is absent here",
        )
    else:
        classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    return ImageData(images, labels, classes, name=f"npz:{path}", split=split)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its writer for ever
            raise _unusable("the file cannot be read", f"{path}: this is not a file")
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(one.file_size for one in members) > max(SMALL_BYTES, MOST_EXPANSION * size):
                raise _unusable("the file would expand too far", f"{path}, {size:,} bytes")
            for member in members:
                with archive.open(member) as file:
                    _refuse_false_header(path, member, file)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except InputError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        raise _unusable("the file cannot be read", f"{path}: {' '.join(str(error).split())[:200]}") from None


def _refuse_false_header(path: Path, member: zipfile.ZipInfo, file: IO[bytes]) -> None:
    """An array's header may not claim more values than its member holds."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if math.prod(shape) * max(1, dtype.itemsize) > member.file_size:  # NumPy widens text of no width
        raise _unusable(
            "an array claims more values than the file holds", f"{path}: {member.filename} {shape}"
        )


def _unusable(problem: str, given: str) -> InputError:
    return InputError(
        problem, given=given, allowed=ALLOWED, fix="write it with np.savez(path, images=..., labels=...)"
    )
