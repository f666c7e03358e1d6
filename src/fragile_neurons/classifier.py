"""The subject of every analysis: a module with its normalisation inside."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import nn
from torch.backends import cudnn

from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.foreign import logits_of, refuse_unusable, unwrap

DType = Literal["float32", "bfloat16"]
DTYPES = get_args(DType)


class Network(Protocol):
    """What an attack asks of its subject: images to logits, differentiable, and a name for messages."""

    name: str

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


class Classifier(nn.Module):
    """A network from images in [0, 1], float32 (n, channels, height, width), to logits (n, classes).

    The normalisation (mean, std per channel) is applied inside. The module is kept as it is: its
    layers keep their names, its weights are shared, not copied. Wrappers such as torch.compile's
    and DataParallel's are taken off; `unwrapped` names them. Outputs other than a tensor: logits_of.
    """

    mean: torch.Tensor | None
    std: torch.Tensor | None

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputError(
                "the network is not a torch.nn.Module",
                given=type(module).__name__,
                allowed="any torch.nn.Module that maps images to logits",
                fix="wrap the function in a small nn.Module",
            )
        module, self.unwrapped = unwrap(module)
        refuse_unusable(module)
        mean, std = (
            None if side is None else [float(value) for value in np.atleast_1d(side)] for side in (mean, std)
        )
        if (mean is None) != (std is None) or (mean and std and len(mean) != len(std)):
            raise InputError(
                "mean and std do not go together",
                given=f"mean={mean}, std={std}",
                allowed="both or neither, one value per channel each",
                fix="give both, e.g. mean=[0.1307], std=[0.3081]",
            )
        if mean is not None and not all(math.isfinite(value) for value in mean):
            raise InputError(
                "mean is not finite", given=list(mean), allowed="finite values", fix="check the numbers"
            )
        if std is not None and not all(0 < value < math.inf for value in std):
            raise InputError(
                "std is not positive",
                given=list(std),
                allowed="finite values above 0",
                fix="check the order of mean and std",
            )
        device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
        self.module = module
        self.dtype = DTYPES[0]
        self.name = name or type(module).__name__
        for key, values in (("mean", mean), ("std", std)):
            tensor = None if values is None else torch.tensor(values, device=device).view(1, -1, 1, 1)
            self.register_buffer(key, tensor, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.computing():
            logits = logits_of(self.module(self.normalise(images)))
        return logits if self.dtype == "float32" else logits.float()

    def as_dtype(self, dtype: str) -> Classifier:
        """The same network, its weights shared, computing in `float32` or `bfloat16`.

        bfloat16: convolutions and linear layers by torch.autocast, the rest in what it asks for; logits are
        float32 again. Faster where the processor has it, and other numbers: never compare the two.
        """
        check_choice("dtype", dtype, DTYPES)
        other = self._like()
        other.dtype = dtype
        return other

    def duplicate(self) -> Classifier:
        """The same network with weights of its own; raises InputError where the module cannot be copied."""
        other = self._like()
        try:
            module = copy.deepcopy(self.module)
        except Exception as error:  # a module of somebody else's may hold anything
            raise InputError(
                "the network cannot be copied",
                given=" ".join(str(error).split())[:300],
                allowed="a module that copy.deepcopy can copy",
                fix="keep no tensors with a history in it, and no open files",
            ) from error
        other.module = module
        return other

    def _like(self) -> Classifier:
        """A classifier of the same module, with hooks and buffers of its own."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):  # torch keeps hooks, buffers and modules in them
                setattr(other, name, value.copy())
        return other

    def computing(self) -> AbstractContextManager[object]:
        """Inside the block operations compute in the classifier's dtype."""
        if self.dtype != "float32":
            return torch.autocast(self.device.type, torch.bfloat16)
        if not torch.cuda.is_available():
            return nullcontext()
        # by default a GPU rounds the inputs of float32 convolutions to 10 bits
        kept = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
        return cudnn.flags(enabled=cudnn.enabled, allow_tf32=False, **kept)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """What the module is given: its own copy in any case, since its first layer may work in place."""
        if self.mean is not None and self.std is not None:
            return (images - self.mean) / self.std
        return images.clone()

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a module without any."""
        return next((tensor.device for tensor in self.module.state_dict().values()), torch.device("cpu"))

    def sha256(self) -> str:
        """A checksum of names, shapes, types and values of all weights, the normalisation and the dtype."""
        digest = hashlib.sha256(b"" if self.dtype == "float32" else self.dtype.encode())
        tensors = {**self.module.state_dict(), "(mean)": self.mean, "(std)": self.std}
        for key, tensor in sorted(tensors.items()):
            if tensor is not None:
                values = tensor.detach().cpu().contiguous()
                digest.update(f"{key} {values.dtype} {tuple(values.shape)}\n".encode())
                digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def parse_device(device: str | torch.device) -> torch.device:
    """`auto`, `cpu`, `cuda`, or `cuda:N`; auto takes the GPU where there is one."""
    text = str(device)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    there = [str(index) for index in range(torch.cuda.device_count())]
    if text != "cpu" and not (kind == "cuda" and there and number in ("", *there)):
        raise InputError(
            "the device cannot be used",
            given=text,
            allowed="auto, cpu, cuda" + ("" if torch.cuda.is_available() else " (no CUDA device here)"),
            fix="use --device cpu",
        )
    return torch.device(text)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's own training flag back afterwards."""
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, flag in flags:
            submodule.training = flag
