"""From a name and a file of weights to a Classifier."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fragile_neurons.classifier import Classifier, parse_device
from fragile_neurons.errors import InputError
from fragile_neurons.foreign import refuse_unusable, unwrap
from fragile_neurons.models.architectures import mnist_cnn, resnet20
from fragile_neurons.models.factories import make_own
from fragile_neurons.models.published import SMALL, ForImages, build_published, is_published
from fragile_neurons.models.weights import Weights, fit_weights, read_weights

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled"
TORCHVISION = "torchvision"  # as --weights: fetch those that torchvision publishes
RESNET20 = "resnet20"


@dataclass(frozen=True)
class Model:
    """A network that comes with weights: how to build it, its normalisation, the data it is trained on."""

    name: str
    build: Callable[[], nn.Module]
    data: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def weights(self) -> Path:
        return BUNDLED / f"{self.name}.safetensors"

    def card(self) -> dict[str, Any]:
        """What the bundled weights reach, on how many images, and the command that made them."""
        card: dict[str, Any] = json.loads((BUNDLED / f"{self.name}.json").read_text())
        return card


MODELS = {
    model.name: model
    for model in (
        Model("mnist-cnn", mnist_cnn, "mnist", mean=(0.1307,), std=(0.3081,)),
        Model("mnist-cnn-robust", mnist_cnn, "mnist", mean=(0.1307,), std=(0.3081,)),
        Model(
            "cifar10-resnet20",
            resnet20,
            "cifar10",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
    )
}


def load_model(
    name: str,
    *,
    data: ForImages | None = None,
    weights: str | Path | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """A classifier by name: bundled, torchvision's, timm's, or a factory of one's own.

    data: whose channels, size and classes torchvision's and timm's networks are built for. weights:
    a file; for a torchvision name the word "torchvision" fetches what it publishes; needed unless
    the weights are bundled or the factory's own. mean, std: the network's normalisation; by default
    the one stored with the weights. Raises InputError for a name, file or device that does not do.
    """
    place = parse_device(device)
    if name in MODELS:
        module, weights = MODELS[name].build(), MODELS[name].weights if weights is None else weights
    elif name == RESNET20 or is_published(name):
        if weights is None:
            raise InputError(
                f"{name} comes without weights",
                given="no --weights",
                allowed=f"a file of weights{', or the word torchvision' if _is_torchvision(name) else ''}",
                fix="add --weights FILE; a network with random weights would prove nothing",
            )
        module = build(name, data)
    else:
        check_name(name)
        module = make_own(name)
    inner, _ = unwrap(module)
    refuse_unusable(inner)
    stored = None if weights is None else _stored(name, inner, weights, data)
    if mean is None and std is None:
        if stored is not None and (stored.mean, stored.std) != (None, None):
            mean, std = stored.mean, stored.std
        elif name in MODELS:
            mean, std = MODELS[name].mean, MODELS[name].std
    module = module.to(place)
    if name in MODELS or name == RESNET20 or _is_torchvision(name.removesuffix(SMALL)):
        # the faster layout of convolutions on most machines; values stay the same, but a view in a
        # network of one's own may not be able to read it
        module = module.to(memory_format=torch.channels_last)
    return Classifier(module, mean=mean, std=std, name=name).eval()


def build(name: str, data: ForImages | None) -> nn.Module:
    """The architecture of this name with fresh weights, for the data's channels, size and classes."""
    if name in MODELS:
        return MODELS[name].build()
    if name == RESNET20:
        return resnet20() if data is None else resnet20(len(data.classes), data.images.shape[1])
    check_name(name)
    return build_published(name, data)


def check_name(name: str) -> None:
    """Raise InputError, with all kinds of names, for one that is of no kind."""
    if not (name in MODELS or name == RESNET20 or ":" in name or is_published(name)):
        raise InputError(
            "there is no such model",
            given=name,
            allowed=f"{', '.join(MODELS)}, {RESNET20}, a torchvision name such as resnet18 or "
            "resnet18:small, timm:NAME, package.module:factory, path/file.py:factory",
            fix="see: fragile-neurons models; a network handed over in Python is run with fn.analyze again",
        )


def default_data(name: str) -> str:
    """The data that a bundled network was trained on; raises InputError for another model."""
    if name not in MODELS:
        check_name(name)
        raise InputError(
            f"it is not known which images {name} is for",
            given="no --data",
            allowed="a data set by name, folder:PATH or npz:PATH",
            fix="add --data, e.g. --data cifar10",
        )
    return MODELS[name].data


def _stored(name: str, module: nn.Module, weights: str | Path, data: ForImages | None) -> Weights:
    if str(weights) == TORCHVISION and not Path(weights).exists():
        return _fetched(name, module, data)
    stored = read_weights(Path(os.path.expanduser(weights)))
    fit_weights(module, stored, weights)
    return stored


def _fetched(name: str, module: nn.Module, data: ForImages | None) -> Weights:
    if not _is_torchvision(name):
        raise InputError(
            f"torchvision has no weights for {name}",
            given=f"--weights {TORCHVISION}",
            allowed="the name of a torchvision model, without :small",
            fix="add --weights FILE",
        )
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT
    try:
        tensors = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # a download fails with anything from URLError to RuntimeError
        raise InputError(
            f"torchvision's weights for {name} cannot be fetched",
            given=" ".join(str(error).split())[:300],
            allowed=f"a reachable {published.url.rpartition('/')[2]}",
            fix="fetch the file elsewhere and give it: --weights FILE",
        ) from None
    preprocessing = published.transforms()
    size, trained = None if data is None else data.images.shape[2:], tuple(preprocessing.crop_size) * 2
    if size not in (None, trained[:2]):
        log.warning(
            "torchvision trained %s on images of %s x %s, these are %s x %s", name, *trained[:2], *size
        )
    weights = Weights(dict(tensors), tuple(preprocessing.mean), tuple(preprocessing.std))
    fit_weights(module, weights, published.url)
    return weights


def _is_torchvision(name: str) -> bool:
    return is_published(name) and ":" not in name
