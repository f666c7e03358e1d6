"""Images in folders, one folder per class, decoded batch by batch: memory does not grow with them."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fragile_neurons.data.images import ImageData, sample_rows
from fragile_neurons.errors import InputError, MissingSplitError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SPLITS = {"train", "val", "test"}
CHANNELS = {"L": 1, "RGB": 3}
SHOWN = 10
LONGEST_SIDE = 4096
# control characters, and marks that turn the direction of a text around
NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class FolderImages:
    """A lazy array (n, channels, height, width) of uint8: a slice chooses files, np.asarray decodes them."""

    root: Path
    files: npt.NDArray[np.object_]
    mode: str
    height: int
    width: int
    dtype: np.dtype[Any] = field(default=np.dtype(np.uint8), init=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.files), CHANNELS[self.mode], self.height, self.width

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> FolderImages:
        return replace(self, files=self.files[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        decoded = np.empty(self.shape, np.uint8)
        for row, name in enumerate(self.files):
            try:
                image = _resize(_decode(self.root, name), (self.height, self.width)).convert(self.mode)
                decoded[row] = np.asarray(image).reshape(self.height, self.width, -1).transpose(2, 0, 1)
            except _BadImageError as error:
                raise InputError(
                    "an image has changed since the run was planned",
                    given=f"{self.root / name}: {error}",
                    allowed="the images as they were",
                    fix="bring it back, or start a new run",
                ) from None
        return decoded if dtype is None else decoded.astype(dtype)


class _BadImageError(Exception):
    """Why a file cannot be used as an image."""


def load_folder(
    path: Path, *, split: str, limit: int | None, seed: int, resize: str | None, skip_bad: bool
) -> ImageData:
    """A stratified sample of the images in path/class/, or in path/split/class/ if there are such folders.

    Classes are the folders' names, sorted. The sample is drawn first; then each of its files is
    decoded once. Raises InputError that names the files that cannot be used, unless `skip_bad`.
    """
    name, size = f"folder:{path}", None if resize is None else parse_size(resize)
    root, classes, files, labels = list_images(path, split)
    rows = sample_rows(labels, limit, seed, f"{name} {split}")
    sizes: Counter[Size] = Counter()
    kept, excluded, mode = [], [], "L"
    for row in rows:
        try:
            image = _decode(root, files[row])
        except _BadImageError as error:
            excluded.append(f"{_shown(files[row])}: {error}")
        else:
            kept.append(row)
            sizes[image.height, image.width] += 1
            mode = "RGB" if image.mode == "RGB" else mode
    if excluded and (not skip_bad or not kept):
        raise InputError(
            f"{len(excluded)} of {len(rows)} images cannot be used",
            given="\n           ".join([str(root), *excluded[:SHOWN], *["..."][: len(excluded) - SHOWN]]),
            allowed=f"still images ({', '.join(FORMATS)}), grey or RGB, 8 bits a channel",
            fix="repair or remove them, or leave them out with --skip-bad",
        )
    common = [f"{height}x{width}" for (height, width), _ in sizes.most_common()]
    if size is None and len(sizes) > 1:
        raise InputError(
            f"the images have {len(sizes)} different sizes",
            given=f"{path}: {', '.join(common[:SHOWN])} (height x width, the most common first)",
            allowed="one size",
            fix=f"resize them all, e.g. --resize {common[0]}",
        )
    chosen, (height, width) = np.array(kept, dtype=np.int64), size or next(iter(sizes))
    return ImageData(
        FolderImages(root, files[chosen], mode, height, width),
        labels[chosen],
        classes,
        name=name,
        split=split,
        positions=chosen,
        excluded=tuple(excluded),
        is_mixed=True,
    )


def list_images(
    path: Path, split: str
) -> tuple[Path, tuple[str, ...], npt.NDArray[np.object_], npt.NDArray[np.int64]]:
    """The split's folder, its classes, every file in them (sorted) and its label; no file is opened."""
    root = _split_folder(path, split)
    classes = _folders(root)
    found = [(name, label) for label, one in enumerate(classes) for name in sorted(_files(root, one))]
    if not found:
        raise InputError(
            "there are no images",
            given=f"{root} with {len(classes)} folders inside",
            allowed="a folder for each class, images in them: PATH/cat/1.png, PATH/dog/1.png",
            fix="choose the folder above the classes' folders",
        )
    files = np.empty(len(found), dtype=object)
    files[:] = [name for name, _ in found]
    return root, tuple(classes), files, np.array([label for _, label in found], dtype=np.int64)


def parse_size(text: str) -> Size:
    """Height and width from "32" or "32x48"."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip())
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= min(size) <= max(size) <= LONGEST_SIDE:
        raise InputError(
            "this is not a size",
            given=text,
            allowed=f"a side, or height x width, up to {LONGEST_SIDE}",
            fix="e.g. --resize 32x48",
        )
    return size


def _split_folder(path: Path, split: str) -> Path:
    if not os.path.isdir(path):  # unlike Path.is_dir, also answers for a name that is too long
        raise InputError(
            "there is no such folder",
            given=path,
            allowed="folder:PATH of an existing folder",
            fix="check the path",
        )
    names = set(_folders(path))
    if len(names & SPLITS) > 1 and not names <= SPLITS:
        raise InputError(
            "the folder mixes splits and classes",
            given=f"{path}: {', '.join(sorted(names)[:SHOWN])}",
            allowed="folders of classes only, or train, val and test only",
            fix="move the folders that are neither train, val nor test elsewhere",
        )
    splits = sorted(names) if names and names <= SPLITS else ["test"]
    if split not in splits:
        raise MissingSplitError(
            "the folder has no such split",
            given=f"{split} of {path}",
            allowed=", ".join(splits),
            fix="put the images into PATH/train, PATH/val and PATH/test, a folder per class in each",
        )
    return path / split if splits != ["test"] or names == {"test"} else path


def _folders(root: Path) -> list[str]:
    names = []
    for entry in list(os.scandir(root)):  # all at once, so that an error leaves nothing open
        if os.path.isdir(entry.path) and not entry.name.startswith("."):
            if not _is_text(entry.name) or (entry.is_symlink() and not _is_inside(root, Path(entry.path))):
                raise InputError(
                    "a class folder cannot be used",
                    given=f"{root}: {entry.name!r}",
                    allowed="folders of UTF-8 names that do not lead out of the data's folder",
                    fix="rename or copy the folder",
                )
            names.append(entry.name)
    return sorted(names)


def _files(root: Path, folder: str) -> Iterator[str]:
    """Paths below a class folder, relative to the root; hidden files and folders are not looked at."""
    for above, folders, names in os.walk(root / folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = os.path.relpath(above, root)
        yield from (f"{place}/{name}" for name in names if not name.startswith("."))


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(
        "a folder of images cannot be read",
        given=f"{error.filename}: {error.strerror}",
        allowed="folders that this user may list",
        fix="change its permissions or move it away",
    )


def _decode(root: Path, name: str) -> Image.Image:
    """The image in a file, grey (L) or RGB; raises _BadImageError that says why there is none."""
    path = root / name
    if not _is_text(name):
        raise _BadImageError("its name is not UTF-8 text, or has control characters")
    if path.is_symlink() and not _is_inside(root, path):
        raise _BadImageError("it is a link that leads out of the folder")
    if not path.is_file():
        raise _BadImageError("it is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                frames = getattr(image, "n_frames", 1)
                if any(re.search(r"\b(RGB|LA)\w*;16", str(tile[3])) for tile in image.tile):
                    raise _BadImageError("it has 16 bits a channel: save it as 8-bit grey or RGB")
                if frames == 1 or image.format == "MPO":  # phones keep a preview behind the photograph
                    image.load()
                    return _plain(image)
    except _BadImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise _BadImageError(" ".join(str(error).replace(str(path), "file").split())[:200]) from None
    raise _BadImageError(f"it has {frames} frames")


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise _BadImageError("it is transparent: lay it on a background first")
        return image.convert("RGB")
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB"):
        return image.convert("RGB")
    raise _BadImageError(f"its mode is {image.mode}: save it as 8-bit grey or RGB")


def _resize(image: Image.Image, size: Size) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _shown(name: str) -> str:
    return name if _is_text(name) else ascii(name)


def _is_text(name: str) -> bool:
    return not NOT_TEXT.search(name) and name == name.encode("utf-8", "ignore").decode()


def _is_inside(root: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
