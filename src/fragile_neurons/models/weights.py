"""Weights from files that nobody vouches for: no code in them runs, nothing grows beyond the file."""

from __future__ import annotations

import io
import json
import logging
import mmap
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fragile_neurons.classifier import Classifier
from fragile_neurons.errors import InputError

MOST_DESCRIPTION_BYTES = 4 * 2**20  # names and shapes; a network of 10,000 tensors needs 2 MB
# the same in a pickle, for some 8,000 tensors: each byte may become an object, and takes a microsecond
MOST_PICKLE_BYTES = 2**20
NORMALISATION = "normalisation"  # of the metadata of safetensors: mean and std as JSON
NESTED_UNDER = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
UNCOUNTED = "num_batches_tracked"  # old files lack it, and evaluation never reads it
END_OF_ZIP, END_OF_ZIP64 = b"PK\x05\x06", b"PK\x06\x06"
LONGEST_END = 22 + 2**16 + 20 + 56  # the record, its comment, the locator and the record of zip64
# the two callables besides tensors that torch.load lets a pickle call with sizes of its choice
GROWING = (b"\nbytearray\n", b"c_codecs\n")


@dataclass(frozen=True)
class Weights:
    """A state dict, and the normalisation that was stored beside it, if any."""

    tensors: dict[str, torch.Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_weights(path: Path) -> Weights:
    """A state dict from safetensors or torch.save, plain or under one of the usual keys.

    Raises InputError for anything else. Nothing is unpickled but tensors and plain containers.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its writer for ever
            raise _unreadable(path, "this is not a file")
        with path.open("rb") as file:
            start = file.read(9)
            if start[8:] == b"{" and not start.startswith(b"PK"):
                return _read_safetensors(path, int.from_bytes(start[:8], "little"))
            if start.startswith(b"PK"):
                _refuse_zip_tricks(path)
                return _read_torch(path)
            if start.startswith(b"\x80"):
                return _read_torch(path)
    except InputError:
        raise
    except Exception as error:  # readers of damaged bytes raise nearly anything
        raise _unreadable(path, _first_sentence(error)) from None
    if start.lstrip()[:1] == b"<":
        raise _unreadable(path, "this is a web page, probably an error message that was saved as a file")
    raise _unreadable(path, "the file is empty" if not start else f"it begins with {start[:8]!r}")


def save_weights(classifier: Classifier, path: Path) -> None:
    """The state dict as safetensors, with the keys of the module's own class and its normalisation."""
    weights = {
        key: one.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, one in classifier.module.state_dict().items()
    }
    parts = {"mean": classifier.mean, "std": classifier.std}
    stored = {  # as the shortest decimals, 0.4 and not 0.4000000059604645
        name: [float(str(value)) for value in one.flatten().cpu().numpy()]
        for name, one in parts.items()
        if one is not None
    }
    # one entry, because safetensors writes several in an order that changes from run to run
    save_file(weights, path, metadata={NORMALISATION: json.dumps(stored)})


def fit_weights(module: nn.Module, weights: Weights, path: Path | str) -> None:
    """Load the weights into the module; raises InputError that names the first that does not fit."""
    expected = {
        key: tuple(one.shape) for key, one in module.state_dict().items() if not key.endswith(UNCOUNTED)
    }
    found = {key: tuple(one.shape) for key, one in weights.tensors.items() if not key.endswith(UNCOUNTED)}
    differing = [key for key in [*expected, *found] if expected.get(key) != found.get(key)]
    if differing:
        key = differing[0]
        raise InputError(
            "the weights do not fit the network",
            given=f"{path} with {key}: {found.get(key, 'missing')}; {len(set(differing)) - 1} more differ",
            allowed=f"{key}: {expected.get(key, 'not in this network')}",
            fix="choose the model, and the data with the number of classes, that they were trained for",
        )
    for key, one in weights.tensors.items():
        if one.is_complex() or one.is_quantized or one.is_meta:
            raise InputError(
                "the weights are not plain numbers",
                given=f"{path} with {key}: {one.dtype} on {one.device}",
                allowed="floating point numbers",
                fix="save the state dict of the network in single precision",
            )
    own = module.state_dict()  # the counts that are missing or odd stay as they are
    own |= {key: one for key, one in weights.tensors.items() if key in own and one.shape == own[key].shape}
    module.load_state_dict(own)


def _read_safetensors(path: Path, header_bytes: int) -> Weights:
    if header_bytes > MOST_DESCRIPTION_BYTES:
        raise _unreadable(path, f"its header claims {header_bytes:,} bytes")
    with safe_open(path, framework="pt") as file:
        stored = json.loads((file.metadata() or {}).get(NORMALISATION, "{}"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    mean, std = (None if stored.get(key) is None else _numbers(stored[key]) for key in ("mean", "std"))
    return Weights(_without_prefix(tensors), mean, std)


def _numbers(values: object) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError(f"its {NORMALISATION} holds a {type(values).__name__}, not a list of numbers")
    return tuple(float(value) for value in values)


def _refuse_zip_tricks(path: Path) -> None:
    """torch.save stores without compression, so whatever would expand was not written by it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - LONGEST_END))
        tail = file.read()
    end = tail.rfind(END_OF_ZIP)
    directory, longer = tail[end:], tail[max(0, end - 76) : max(0, end - 20)]
    directory_bytes = int.from_bytes(directory[12:16], "little")
    if longer.startswith(END_OF_ZIP64):
        directory_bytes = max(directory_bytes, int.from_bytes(longer[40:48], "little"))
    if directory_bytes > MOST_DESCRIPTION_BYTES:
        raise _unreadable(path, f"its directory takes {directory_bytes:,} bytes")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any("constants.pkl" in one.filename for one in members):
        raise _unreadable(path, "this is TorchScript: it holds code")
    if any(one.compress_type for one in members) or sum(one.file_size for one in members) > size:
        raise _unreadable(path, "it would expand beyond its size")
    described = sum(one.file_size for one in members if one.filename.endswith(".pkl"))
    if described > MOST_PICKLE_BYTES:
        raise _unreadable(path, f"its names and shapes take {described:,} bytes")


def _read_torch(path: Path) -> Weights:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        if any(whole.find(name) >= 0 for name in GROWING):
            raise _unreadable(path, "it holds bytes beside its tensors, which could fill the memory")
    # first without any memory for values: what a file claims is held against what it has
    with _unlogged(), FakeTensorMode(), warnings.catch_warnings(action="ignore"), path.open("rb") as file:
        source: Any = file if zipfile.is_zipfile(path) else _Limited(file)
        claimed = _state_dict(torch.load(source, map_location="cpu", weights_only=True), path)
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in claimed.values()}
    if sum(storages.values()) > path.stat().st_size:
        raise _unreadable(path, f"it claims {sum(storages.values()):,} bytes of values")
    for key, one in claimed.items():
        if one.layout != torch.strided or one.numel() * one.element_size() > one.untyped_storage().nbytes():
            raise _unreadable(path, f"{key} claims {tuple(one.shape)}, more values than it stores")
    with path.open("rb") as file:  # given the path, torch would go by its ending
        content = torch.load(file, map_location="cpu", weights_only=True)
    return Weights(_without_prefix(_state_dict(content, path)))


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without the tracebacks that torch logs of shapes that cannot be, before it raises."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _Limited(io.RawIOBase):
    """A file of which only so much can be read: the old format describes its values without a size."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, MOST_PICKLE_BYTES

    def read(self, size: int = -1) -> bytes:
        return self._counted(self.file.read(size if 0 <= size <= self.left else self.left + 1))

    def readline(self, size: int | None = -1) -> bytes:
        return self._counted(self.file.readline(self.left + 1))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def _counted(self, content: bytes) -> bytes:
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"its names and shapes take more than {MOST_PICKLE_BYTES:,} bytes")
        return content


def _state_dict(content: object, path: Path) -> dict[str, torch.Tensor]:
    for key in NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        kind = "tensor" if isinstance(content, torch.Tensor) else type(content).__name__
        raise _unreadable(path, f"it holds {'nothing' if content == {} else f'a {kind}'}, not a state dict")
    for key, value in content.items():
        if not isinstance(key, str):
            raise _unreadable(path, f"{str(key)[:80]} is the name of a tensor, but not text")
        if not isinstance(value, torch.Tensor):
            raise _unreadable(
                path,
                f"{str(key)[:80]!r} is a {type(value).__name__}, not a tensor; is the state dict nested?",
            )
    return content


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _first_sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in text or "Unsupported" in text:
        return "it holds more than tensors (a pickled network?), which could run code"
    return text[:200]


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(
        "the weights cannot be read",
        given=f"{path}: {reason}",
        allowed="a state dict, from safetensors or torch.save(net.state_dict(), path)",
        fix="check the path, or save the state dict anew where the network was trained",
    )
