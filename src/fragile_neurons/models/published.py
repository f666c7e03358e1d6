"""Architectures of torchvision and timm by name, built for the channels, size and classes of the data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from fragile_neurons.errors import InputError

SMALL, TIMM = ":small", "timm:"
RGB = 3
# torchvision's constructors that need more than the number of classes
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
EXTRA: dict[str, dict[str, Any]] = {"googlenet": WITHOUT_AUXILIARY, "inception_v3": WITHOUT_AUXILIARY}
OPTIONS = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "padding_mode",
)


class HasShape(Protocol):
    """Whatever has the shape (n, channels, height, width)."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class ForImages(Protocol):
    """The data a network is built for."""

    @property
    def images(self) -> HasShape: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


def published_names() -> list[str]:
    """The names of torchvision's image classifiers."""
    from torchvision import models  # takes a second, so only when it is needed

    return list(models.list_models(module=models))


def is_published(name: str) -> bool:
    """Whether torchvision or timm is asked for; a timm name need not exist."""
    return name.startswith(TIMM) or name.removesuffix(SMALL) in published_names()


def build_published(name: str, data: ForImages | None) -> nn.Module:
    """The network with fresh weights, for the data's channels, size and classes.

    Without data as its authors have it: 3 channels, 1,000 classes. `:small` is a stem for small
    images: a first convolution of at most 3x3 and stride 1, and no pooling before the second.
    """
    base = name.removesuffix(SMALL)
    channels, size, classes = (RGB, None, 1000) if data is None else _shape(data)
    if base.startswith(TIMM):
        module = _build_timm(base.removeprefix(TIMM), channels, size, classes)
    else:
        from torchvision import models

        options = dict(EXTRA.get(base, {}))
        if base.startswith("vit_") and size is not None:
            options["image_size"] = size
        module = _built(name, lambda: models.get_model(base, weights=None, num_classes=classes, **options))
        if channels != RGB:
            first, old = _first_convolution(module)
            _replace(module, first, _like(old, in_channels=channels))
    if name.endswith(SMALL):
        _make_small(module, name)
    return module


def _shape(data: ForImages) -> tuple[int, int, int]:
    _, channels, height, width = data.images.shape
    return channels, min(height, width), len(data.classes)


def _build_timm(name: str, channels: int, size: int | None, classes: int) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise InputError(
            "timm is not installed",
            given=f"{TIMM}{name}",
            allowed="an installed timm",
            fix="pip install 'fragile-neurons[timm]'",
        )
    import timm

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:6]}*")[:8])
        raise InputError(
            "timm has no such model",
            given=name,
            allowed=close or "the names of timm.list_models()",
            fix="check the name",
        )
    fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
    options = {"img_size": size} if fixed and size is not None else {}
    return _built(
        f"{TIMM}{name}",
        lambda: timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **options),
    )


def _built(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # constructors of other libraries raise what they like
        raise InputError(
            f"{name} cannot be built for this data",
            given=" ".join(str(error).split())[:300],
            allowed="images of a size that the architecture takes",
            fix="choose another architecture, or --resize the images",
        ) from None


def _first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, one) for name, one in module.named_modules() if isinstance(one, nn.Conv2d))


def _make_small(module: nn.Module, name: str) -> None:
    first, old = _first_convolution(module)
    kernel = tuple(min(side, 3) for side in old.kernel_size)
    if old.kernel_size == old.stride:
        raise InputError(
            "this architecture has no small stem",
            given=f"{name}: its first convolution cuts the image into patches",
            allowed="convolutional networks",
            fix="leave :small out; the patches stay as they are",
        )
    padding = tuple(side // 2 for side in kernel)
    _replace(module, first, _like(old, kernel_size=kernel, stride=1, padding=padding))
    for place, one in list(module.named_modules()):
        if isinstance(one, nn.Conv2d) and place != first:
            break
        if isinstance(one, nn.MaxPool2d):
            _replace(module, place, nn.Identity())


def _like(old: nn.Conv2d, **changed: Any) -> nn.Conv2d:
    kept = {name: getattr(old, name) for name in OPTIONS}
    return nn.Conv2d(**{**kept, "bias": old.bias is not None, **changed})


def _replace(module: nn.Module, place: str, new: nn.Module) -> None:
    module.set_submodule(place, new)
