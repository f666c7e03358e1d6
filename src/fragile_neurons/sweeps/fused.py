"""A convolution with what follows it in one pass, which oneDNN does in less time on the CPU."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from fragile_neurons.sweeps.graph import layers_by_name
from fragile_neurons.sweeps.products import PRODUCTS, is_plain

SUMS = {operator.add, torch.add}
RECTIFICATIONS = {functional.relu, torch.relu}
WITHOUT_NAN = {
    *("add", "iadd", "sub", "isub", "mul", "imul", "neg", "abs", "matmul", "bmm", "where", "put"),
    *("sum", "mean", "amax", "amin", "maximum", "minimum", "clamp", "to", "float", "contiguous", "clone"),
    *("flatten", "view", "reshape", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "expand"),
    *("cat", "concat", "stack", "chunk", "split", "getitem", "roll", "flip", "pad", "pixel_shuffle"),
    *("relu", "relu6", "leaky_relu", "elu", "silu", "gelu", "mish", "tanh", "hardtanh", "softplus"),
    *("sigmoid", "hardsigmoid", "hardswish", "softmax", "dropout", "stochastic_depth", "interpolate"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "conv2d", "linear"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm"),
}
"""Names of functions that make no NaN of finite inputs, if nothing overflows."""


class FusedConv(nn.Module):
    """relu(conv(maps) + added), or without one of both; `added` is overwritten.

    On the CPU in float32 oneDNN does it in one pass, by the operations that torch.compile takes.
    There a NaN is rectified to 0, which torch leaves NaN: see `makes_no_nan`.
    """

    def __init__(self, conv: nn.Conv2d, rectified: bool) -> None:
        super().__init__()
        self.conv, self.rectified = conv, rectified

    def forward(self, maps: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        if torch.is_grad_enabled() and (maps.requires_grad or (added is not None and added.requires_grad)):
            found: torch.Tensor = Differentiable.apply(self, maps, added)
            return found
        return self.compute(maps, added)

    def compute(self, maps: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """What forward does, of which autograd is to know nothing."""
        conv = self.conv
        if not _can_fuse(maps) or not _can_fuse(added):
            found: torch.Tensor = conv(maps)
            found = found if added is None else found.add_(added)
            return found.relu_() if self.rectified else found
        settings = conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups
        if added is None:
            active = "relu" if self.rectified else "none"
            found = torch.ops.mkldnn._convolution_pointwise(maps, *settings, active, [], "")
        else:
            add, after = torch.ops.mkldnn._convolution_pointwise_.binary, "relu" if self.rectified else None
            found = add(added, maps, *settings, "add", 1.0, after, [], "")
        return found


class Differentiable(torch.autograd.Function):
    """The same for autograd; nothing is overwritten."""

    @staticmethod
    def forward(ctx: Any, fused: FusedConv, maps: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        found = fused.compute(maps, None if added is None else added.clone())
        ctx.conv, ctx.shape = fused.conv, maps.shape
        if fused.rectified:
            ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[None, torch.Tensor | None, torch.Tensor | None]:
        for found in ctx.saved_tensors:
            slopes = torch.ops.aten.threshold_backward(slopes, found, 0)
        conv, before = ctx.conv, None
        if ctx.needs_input_grad[1]:
            settings = conv.stride, conv.padding, conv.dilation, conv.groups
            before = conv2d_input(ctx.shape, conv.weight, slopes, *settings)  # type: ignore[no-untyped-call]
        return None, before, slopes if ctx.needs_input_grad[2] else None


NEW = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ReLU, FusedConv, *PRODUCTS)


def _can_fuse(maps: torch.Tensor | None) -> bool:
    return maps is None or (is_plain(maps) and maps.is_contiguous(memory_format=torch.channels_last))


def makes_no_nan(graph: fx.Graph, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether it is of torch's layers and known functions alone; shapes: of its tensors, by name."""
    called = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    names = {getattr(node.target, "__name__", str(node.target)) for node in called if node.name in shapes}
    return {name.strip("_") for name in names} <= WITHOUT_NAN


def fuse(rest: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size], *, rectify: bool) -> None:
    """Let each convolution do the sum and the rectification that alone read it; shapes: of the nodes.

    rectify: whether rectifications, too, which is for networks that make no NaN.
    """
    modules = layers_by_name(rest)
    order = {node: position for position, node in enumerate(rest.graph.nodes)}
    overwritten: set[object] = set()

    def is_new(node: fx.Node) -> bool:
        """Whether its value is a tensor of its own: no view of another, and no other is kept in it."""
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], NEW)
        return node.op == "placeholder" or node.target in SUMS | RECTIFICATIONS | {functional.pad}

    def is_spare(node: object, total: fx.Node) -> bool:
        """Whether a sum may overwrite it: all others who read it have done so, and kept none of it."""
        if not isinstance(node, fx.Node) or shapes.get(node) != shapes.get(total) or not is_new(node):
            return False
        return all(order[one] < order[total] and is_new(one) for one in node.users if one is not total)

    for node in list(rest.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        place, inputs = node, list(node.args)
        total = _only_user(node)
        if total.target in SUMS and len(total.args) == 2 and not total.kwargs:
            added = total.args[total.args[0] is node]
            apart = added is not node and added not in inputs
            # the convolution moves down to the sum: what it reads must still be there
            if apart and is_spare(added, total) and not overwritten.intersection(inputs):
                overwritten.add(added)
                place, inputs = total, [*inputs, added]
        active = _only_user(place)
        rectified = rectify and is_rectification(active, modules)
        if place is node and not rectified:
            continue
        place.op, place.target, place.args = "call_module", f"fused_{node.name}", tuple(inputs)
        modules[place.target] = FusedConv(conv, rectified)
        rest.add_submodule(place.target, modules[place.target])
        if place is total:
            rest.graph.erase_node(node)
        if rectified:
            active.replace_all_uses_with(place)
            rest.graph.erase_node(active)
    rest.delete_all_unused_submodules()
    rest.recompile()


def is_rectification(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether it is a ReLU; modules: by what nodes call them."""
    return node.target in RECTIFICATIONS or isinstance(modules.get(str(node.target)), nn.ReLU)


def _only_user(node: fx.Node) -> fx.Node:
    """The node that alone reads this one, or itself."""
    return next(iter(node.users)) if len(node.users) == 1 else node
