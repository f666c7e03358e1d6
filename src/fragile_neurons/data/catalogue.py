"""The data sets known by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fragile_neurons.data import mnist
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError

DEFAULT_LIMIT = 2_000


class Fetch(Protocol):
    def __call__(self, say: Callable[[str], None], local: Path | None = None) -> None: ...


@dataclass(frozen=True)
class Dataset:
    """A named data set: what it is, how to get it, how to load a split."""

    name: str
    title: str
    classes: tuple[str, ...]
    sizes: dict[str, int]
    epsilons: tuple[str, ...]
    licence: str
    is_fetched: Callable[[], bool]
    fetch: Fetch
    load: Callable[[str], ImageData]


CATALOGUE = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name=mnist.NAME,
            title="MNIST, handwritten digits, 1 x 28 x 28",
            classes=mnist.CLASSES,
            sizes=mnist.SIZES,
            epsilons=("0.05", "0.1", "0.2"),
            licence="CC BY-SA 3.0",
            is_fetched=mnist.is_fetched,
            fetch=mnist.fetch,
            load=mnist.load,
        ),
    )
}


def find_dataset(name: str) -> Dataset:
    """The data set of this name; an InputError that lists all names otherwise."""
    if name not in CATALOGUE:
        raise InputError(
            "there is no such data set",
            given=name,
            allowed=", ".join(CATALOGUE),
            fix="see: fragile-neurons data list",
        )
    return CATALOGUE[name]


def load_data(name: str, *, split: str = "test", limit: int | None = None, seed: int = 0) -> ImageData:
    """Images of a named data set: a seeded stratified sample of `limit`, or all, in a seeded order.

    Raises InputError for an unknown name or split, a limit out of range, or data not yet fetched.
    """
    dataset = find_dataset(name)
    if split not in dataset.sizes:
        raise InputError(
            f"{name} has no such split",
            given=split,
            allowed=", ".join(f"{key} ({size:,} images)" for key, size in dataset.sizes.items()),
            fix="choose one of them with --split",
        )
    return dataset.load(split).sample(limit, seed)
