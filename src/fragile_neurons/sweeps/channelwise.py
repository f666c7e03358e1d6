"""Which operations act on each channel alone, so that one pass serves every channel at once."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fragile_neurons.neurons import ACTIVATIONS, TRANSPARENT

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
ACTIVATION_NAMES = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh",
    "softplus", "hardswish", "hardsigmoid", "hardtanh", "dropout",
)  # fmt: skip
METHOD_NAMES = ("relu", "sigmoid", "tanh", "abs", "clamp", "neg")
ELEMENTWISE = {
    *(getattr(functional, name) for name in ACTIVATION_NAMES),
    *(getattr(torch, name) for name in METHOD_NAMES),
    *METHOD_NAMES, operator.neg, "contiguous", "clone",
}  # fmt: skip
POOL_FUNCTIONS = {
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d,
}
BINARY = {
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
    "add", "sub", "mul", "div",
}  # fmt: skip
FLATTEN = {torch.flatten, "flatten"}
MEAN = {torch.mean, "mean"}


@dataclass(frozen=True)
class Place:
    """Where channel k is in a tensor: entries k * width to (k + 1) * width along the axis."""

    axis: int
    width: int


def follow(
    node: fx.Node,
    places: Mapping[fx.Node, Place],
    shapes: Mapping[str, torch.Size],
    modules: Mapping[str, nn.Module],
) -> Place | None:
    """Where the channels are in a node's value, if it treats each alone; None where it mixes them.

    places: of those inputs that hold channels. shapes: of tensors, by the name of their node.
    """
    if node.name not in shapes:  # it puts out several tensors
        return None
    first = next(one for one in node.all_input_nodes if one in places)
    place, shape = places[first], shapes[first.name]
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, (*ACTIVATIONS, *TRANSPARENT)) and not _mixes(module):
            return place
        plain = place == Place(1, 1)
        if plain and isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            return place
        if plain and len(shape) == 4 and isinstance(module, (nn.InstanceNorm2d, *POOLS)):
            return place
        if plain and isinstance(module, nn.Conv2d):
            alone = module.groups == module.in_channels == module.out_channels
            return place if alone else None
        if isinstance(module, nn.Flatten) and module.end_dim == -1:
            return _flattened(place, shape, module.start_dim)
        return None
    if node.target in ELEMENTWISE:
        return place
    if node.target in POOL_FUNCTIONS:
        return place if place == Place(1, 1) and len(shape) == 4 else None
    if node.target in BINARY:
        return place if _aligned(node, places, shapes, shape, place) else None
    if node.target in FLATTEN and len(node.args) <= 2 and not node.kwargs.keys() - {"start_dim", "input"}:
        start = node.args[1] if len(node.args) == 2 else node.kwargs.get("start_dim", 0)
        return _flattened(place, shape, start)
    if node.target in MEAN and place == Place(1, 1) and len(shape) == 4:
        return place if _spatial(node) else None
    return None


def _mixes(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters > 1


def _flattened(place: Place, shape: torch.Size, start: Any) -> Place | None:
    if start != 1 or place.axis != 1:
        return None
    return Place(1, place.width * math.prod(shape[2:]))


def _spatial(node: fx.Node) -> bool:
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(dims, (tuple, list)):
        return False
    return {dim % 4 for dim in dims if isinstance(dim, int)} == {2, 3} and len(dims) == 2


def _aligned(
    node: fx.Node,
    places: Mapping[fx.Node, Place],
    shapes: Mapping[str, torch.Size],
    shape: torch.Size,
    place: Place,
) -> bool:
    """Whether every other operand is a number, or has its own value of each channel in the same place."""
    for operand in (*node.args, *node.kwargs.values()):
        if not isinstance(operand, fx.Node):
            continue
        if operand in places:
            if places[operand] != place:
                return False
        elif operand.name in shapes:
            other = shapes[operand.name]
            if len(other) != len(shape) or other[place.axis] != shape[place.axis]:
                return False
        else:
            return False
    return True
