"""From a name and a file of weights to a Classifier."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fragile_neurons.classifier import Classifier
from fragile_neurons.errors import InputError
from fragile_neurons.models.architectures import mnist_cnn

BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class Model:
    """A named network: how to build it, its normalisation, and the data it is trained on."""

    name: str
    build: Callable[[], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str

    @property
    def weights(self) -> Path:
        return BUNDLED / f"{self.name}.safetensors"

    def card(self) -> dict[str, Any]:
        """What the bundled weights reach, on how many images, and the command that made them."""
        card: dict[str, Any] = json.loads((BUNDLED / f"{self.name}.json").read_text())
        return card


MODELS = {
    name: Model(name, mnist_cnn, mean=(0.1307,), std=(0.3081,), data="mnist")
    for name in ("mnist-cnn", "mnist-cnn-robust")
}


def find_model(name: str) -> Model:
    """The model of this name; an InputError that lists all names otherwise."""
    if name not in MODELS:
        raise InputError(
            "there is no such model", given=name, allowed=", ".join(MODELS), fix="see: fragile-neurons models"
        )
    return MODELS[name]


def load_model(
    name: str,
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """A classifier by name, with its bundled weights or those of a safetensors file.

    Raises InputError for an unknown name or weights that do not fit the network.
    """
    model = find_model(name)
    module = model.build()
    _load_weights(module, Path(weights) if weights is not None else model.weights)
    # channels_last is the faster layout of convolutions on most machines; values stay the same
    module = module.to(device).to(memory_format=torch.channels_last)
    mean, std = (mean, std) if mean is not None or std is not None else (model.mean, model.std)
    return Classifier(module, mean=mean, std=std, name=name).eval()


def untrained_model(name: str) -> Classifier:
    """The network of this name with fresh weights, for training."""
    model = find_model(name)
    return Classifier(model.build(), mean=model.mean, std=model.std, name=name)


def _load_weights(module: nn.Module, path: Path) -> None:
    expected = module.state_dict()
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            "the weights cannot be read",
            given=f"{path}: {' '.join(str(error).split())}",
            allowed="a safetensors file",
            fix="check the path and the file",
        ) from None
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    differing = [key for key in sorted({*expected, *shapes}) if _shape(expected, key) != shapes.get(key)]
    if differing:
        key = differing[0]
        raise InputError(
            "the weights do not fit the network",
            given=f"{path} with {key}: {shapes.get(key, 'missing')}; {len(differing) - 1} more differ",
            allowed=f"{key}: {_shape(expected, key) if key in expected else 'not in this network'}",
            fix="choose the model that these weights were trained as",
        )
    module.load_state_dict(weights)


def _shape(weights: dict[str, torch.Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(weights[key].shape) if key in weights else None
