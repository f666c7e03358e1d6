"""Damaged files of every kind that is read: each is understood or refused with one message, never a crash.

    python tests/fuzz.py --inputs 25000

So many inputs of each kind, made by hypothesis from good files: bytes flipped, overwritten, cut off, doubled.
Prints a line for each kind.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from fragile_neurons.cli.specs import specs_in
from fragile_neurons.data.arrays import load_npz
from fragile_neurons.data.catalogue import load_data
from fragile_neurons.data.cifar10 import BATCHES, _unpacking
from fragile_neurons.data.sources import Source, SourceError
from fragile_neurons.errors import FragileNeuronsError
from fragile_neurons.models.weights import fit_weights, read_weights

Reader = Callable[[bytes, Path], object]
NUMBERS = (b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, b"[[", b"'", b'"', b"\n")
SPEC = b"""seed = 3
data = "mnist"
epsilons = ["0.1", "8/255"]
[[runs]]
model = "mnist-cnn"
limit = 100
mean = [0.1]
std = [0.3]
[[runs]]
model = "mnist-cnn-robust"
layer = "all"
tolerance = 0.02
skip_bad = false
"""


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A few changes to a good file."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        stop = min(len(content), start + draw(st.integers(1, 12)))
        kind = draw(st.integers(0, 5))
        if kind == 0 and content:
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            content[start:stop] = draw(st.binary(max_size=12))
        elif kind == 2:
            del content[start:]
        elif kind == 3:
            content[start:start] = content[start:stop]
        elif kind == 4:
            del content[start:stop]
        else:
            content[start : start + 4] = draw(st.sampled_from(NUMBERS))
    return bytes(content)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))


def weights(content: bytes, folder: Path) -> None:
    path = folder / "weights"
    path.write_bytes(content)
    fit_weights(network(), read_weights(path), path)


def arrays(content: bytes, folder: Path) -> object:
    (folder / "images.npz").write_bytes(content)
    return load_npz(folder / "images.npz", split="test")


def idx(content: bytes, folder: Path) -> object:
    place = folder / "MNIST" / "raw"
    place.mkdir(parents=True, exist_ok=True)
    (place / "train-images-idx3-ubyte").write_bytes(content)
    (place / "train-labels-idx1-ubyte").write_bytes(content)
    return load_data("mnist", split="train")


def sheets(content: bytes, folder: Path, name: str = "test_batch.png") -> None:
    good = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(content)
        _unpacking(Source("these", lambda scratch: None)).collect(folder)
    finally:
        (folder / name).write_bytes(good)
        for unpacked in folder.glob("*.uint8"):
            unpacked.unlink()


def labels(content: bytes, folder: Path) -> None:
    sheets(content, folder, "test_lables.json")


def spec(content: bytes, folder: Path) -> object:
    (folder / "spec.toml").write_bytes(content)
    return specs_in("analyze", folder / "spec.toml")


def good_files(folder: Path) -> dict[str, tuple[bytes, Reader]]:
    """A small good file of each kind, and what reads it."""
    generator = np.random.default_rng(0)
    state = network().state_dict()
    images, classes = generator.integers(0, 255, (6, 1, 4, 4), dtype=np.uint8), np.arange(6) % 3
    files: dict[str, tuple[bytes, Reader]] = {"safetensors": (save(state), weights)}
    for name, modern in (("state dict (zip)", True), ("state dict (pickle)", False)):
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=modern)
        files[name] = (stream.getvalue(), weights)
    for name, write in (("npz", np.savez), ("npz (deflated)", np.savez_compressed)):
        stream = io.BytesIO()
        write(stream, images=images, labels=classes, classes=np.array(["a", "b", "c"]))
        files[name] = (stream.getvalue(), arrays)
    files["IDX"] = (bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(32), idx)
    stream = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (3, 64, 3), dtype=np.uint8)).save(stream, "PNG")
    for part, names in BATCHES.items():
        for name in names:
            (folder / f"{name}.png").write_bytes(stream.getvalue())
        (folder / f"{part}_lables.json").write_text(json.dumps([0, 1, 2]))
    files["PNG sheets"] = (stream.getvalue(), sheets)
    files["labels in JSON"] = (json.dumps([0, 1, 2]).encode(), labels)
    files["spec TOML"] = (SPEC, spec)
    return files


class Crying(logging.Handler):
    """What a library logs of a bad file would reach the user."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage())


def fuzz(whole: bytes, read: Reader, folder: Path, inputs: int) -> tuple[int, int]:
    """How many inputs were refused, and how many understood; raises whatever else one raises."""
    counts = [0, 0]

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(content=damaged(whole))
    def one(content: bytes) -> None:
        try:
            read(content, folder)
        except (FragileNeuronsError, SourceError):
            counts[0] += 1
        else:
            counts[1] += 1

    crying, logger = Crying(), logging.getLogger("torch")
    logger.addHandler(crying)
    try:
        one()
    finally:
        logger.removeHandler(crying)
    return counts[0], counts[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=15_000)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # readers warn of what they then refuse
    total = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["FRAGILE_NEURONS_DATA"] = place
        for name, (whole, read) in good_files(folder).items():
            read(whole, folder) if read is not idx else None
            start = time.perf_counter()
            refused, understood = fuzz(whole, read, folder, asked.inputs)
            total += refused + understood
            print(
                f"{name}: {refused + understood:,} inputs, {refused:,} refused, {understood:,} understood, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    print(f"{total:,} inputs, nothing but clean errors")


if __name__ == "__main__":
    main()
