"""A graph that does less for the same values: norms inside convolutions, kernels without idle taps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fragile_neurons.sweeps.graph import Traced, layers_by_name


def lighten(traced: Traced, apart: Collection[str]) -> fx.GraphModule:
    """A copy of the graph that does less for the same values.

    Each batch norm goes into the convolution before it, but where a node of a name in `apart` takes
    part; kernels lose what only ever meets the padding. A folded node keeps the name of the norm,
    whose value it has; the convolution's own node is gone.
    """
    copied = fx.Graph()
    copied.output(copied.graph_copy(traced.graph.graph, {}))
    light = fx.GraphModule(traced.graph, copied)
    modules = layers_by_name(light)
    for node in list(copied.nodes):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node):
            continue
        if (
            _calls(node, modules, nn.BatchNorm2d)
            and _calls(before, modules, nn.Conv2d)
            and len(before.users) == 1
            and not {node.name, before.name} & set(apart)
        ):
            conv, norm = modules[str(before.target)], modules[str(node.target)]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            _call(light, modules, node, traced.make(fold_norm, conv, norm))
            node.args = before.args
            copied.erase_node(before)
        if _calls(node, modules, nn.Conv2d):
            conv = modules[str(node.target)]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(node.args[0], fx.Node)
            cropped = traced.make(crop_kernel, conv, traced.shapes[node.args[0].name][2:])
            if cropped is not conv:
                _call(light, modules, node, cropped)
    light.recompile()
    return light


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does what both do in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return _convolution(conv, weight, bias, conv.padding)


def crop_kernel(conv: nn.Conv2d, size: Sequence[int]) -> nn.Conv2d:
    """The same convolution on maps of this size, without the taps that meet nothing but zero padding.

    Of a 3x3 kernel on 1x1 maps only the middle is left. Where nothing can go, the convolution itself.
    """
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return conv
    windows, padding = [], []
    for side, taps, stride, pad, dilation in zip(
        size, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
    ):
        outputs = (side + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
        used = [
            tap
            for tap in range(taps)
            if any(0 <= start * stride - pad + tap * dilation < side for start in range(outputs))
        ]
        first, last = (used[0], used[-1]) if used else (0, taps - 1)
        less = pad - first * dilation
        if less < 0 or (side + 2 * less - dilation * (last - first) - 1) // stride + 1 != outputs:
            first, last, less = 0, taps - 1, pad
        windows.append(slice(first, last + 1))
        padding.append(less)
    weight = conv.weight[:, :, windows[0], windows[1]]
    if weight.shape == conv.weight.shape:
        return conv
    return _convolution(conv, weight, conv.bias, (padding[0], padding[1]))


def _convolution(
    like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None, padding: str | tuple[int, ...]
) -> nn.Conv2d:
    """A plain convolution like another, of other weights, that nothing parametrises."""
    shape: Any = {"stride": like.stride, "padding": padding, "dilation": like.dilation}
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        (weight.shape[2], weight.shape[3]),
        groups=like.groups,
        bias=bias is not None,
        padding_mode=like.padding_mode,
        device="meta",
        **shape,
    )
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.channels_last), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return conv.eval()


def _calls(node: fx.Node, modules: Mapping[str, nn.Module], kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], kind)


def _call(graph: fx.GraphModule, modules: dict[str, nn.Module], node: fx.Node, module: nn.Module) -> None:
    """Let this node call another module, under a name of the node's own."""
    node.target = f"lightened_{node.name}"
    graph.add_submodule(node.target, module)
    modules[node.target] = module
