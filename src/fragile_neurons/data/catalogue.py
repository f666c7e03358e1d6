"""The data sets known by name."""

from __future__ import annotations

import os
from pathlib import Path

from fragile_neurons.data.arrays import load_npz
from fragile_neurons.data.cifar10 import CIFAR10
from fragile_neurons.data.dataset import Dataset
from fragile_neurons.data.folders import list_images, load_folder
from fragile_neurons.data.images import ImageData
from fragile_neurons.data.mnist import FASHION_MNIST, MNIST
from fragile_neurons.errors import InputError

DEFAULT_LIMIT = 2_000
EPSILONS = ("1/255", "2/255", "8/255")


CATALOGUE = {dataset.name: dataset for dataset in (MNIST, FASHION_MNIST, CIFAR10)}


def find_dataset(name: str) -> Dataset:
    """The data set of this name; an InputError that lists all names otherwise."""
    if name not in CATALOGUE:
        raise InputError(
            "there is no such data set",
            given=name,
            allowed=f"{', '.join(CATALOGUE)}; where images are only read also folder:PATH and npz:PATH",
            fix=f"did you mean folder:{name}"
            if Path(name).is_dir()
            else "see: fragile-neurons data list; images handed over in Python: the same call again",
        )
    return CATALOGUE[name]


def load_data(
    name: str,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    resize: str | None = None,
    skip_bad: bool = False,
) -> ImageData:
    """Images by name, `folder:PATH` or `npz:PATH`: a seeded stratified sample of `limit`, or all.

    They come in a seeded order. resize ("32", "32x48") and skip_bad are for folders. Raises
    InputError for an unknown name or split, a limit out of range, or data not fetched or not readable.
    """
    kind, path = _kind_and_path(name)
    if kind == "folder":
        return load_folder(path, split=split, limit=limit, seed=seed, resize=resize, skip_bad=skip_bad)
    if resize is not None or skip_bad:
        raise InputError(
            "resizing and skipping are for folders of images",
            given=f"--resize or --skip-bad with {name}",
            allowed="folder:PATH",
            fix="leave the option out",
        )
    if kind == "npz":
        return load_npz(path, split=split).sample(limit, seed)
    dataset = find_dataset(name)
    if split not in dataset.sizes:
        raise InputError(
            f"{name} has no such split",
            given=split,
            allowed=", ".join(f"{key} ({size:,} images)" for key, size in dataset.sizes.items()),
            fix="choose one of them with --split",
        )
    return dataset.load(split).sample(limit, seed)


def count_images(name: str, split: str) -> int:
    """How many images a split has, before any is left out."""
    kind, path = _kind_and_path(name)
    if kind == "folder":
        return len(list_images(path, split)[-1])
    if kind == "npz":
        return len(load_npz(path, split=split))
    return find_dataset(name).sizes.get(split, DEFAULT_LIMIT)


def default_epsilons(name: str) -> tuple[str, ...]:
    """The budgets to attack this data with where none are asked for."""
    return find_dataset(name).epsilons if name in CATALOGUE else EPSILONS


def absolute(name: str) -> str:
    """The same data, named so that it is found from any folder."""
    kind, path = _kind_and_path(name)
    return f"{kind}:{path}" if kind else name


def _kind_and_path(name: str) -> tuple[str, Path]:
    kind, _, text = name.partition(":")
    if kind not in ("folder", "npz"):
        return "", Path()
    if not text:
        raise InputError(
            "the path is missing", given=name, allowed="folder:PATH or npz:PATH", fix="e.g. folder:photos"
        )
    return kind, Path(os.path.expanduser(text)).absolute()
