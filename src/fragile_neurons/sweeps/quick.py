"""The dense part of a split graph, made to do the same in less time."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from fragile_neurons.sweeps.fused import FusedConv, fuse, is_rectification
from fragile_neurons.sweeps.graph import Traced, layers_by_name
from fragile_neurons.sweeps.products import PRODUCTS, take_products

INPLACE_FUNCTIONS = {functional.relu, functional.relu6, functional.silu, functional.hardswish}


def quicken(
    rest: fx.GraphModule, shapes: dict[fx.Node, torch.Size], traced: Traced, *, rectify: bool
) -> None:
    """Change a graph over maps channels last, whose values nobody else reads.

    shapes: of its nodes, kept true. traced: what it is a part of. rectify: see `fuse`.
    """
    _flatten_as_it_lies(rest, shapes, traced)
    take_products(rest, shapes, traced)
    fuse(rest, shapes, rectify=rectify)
    _halve_maps(rest, shapes)
    _put_in_place(rest, shapes)


class HalvedMaps(nn.Module):
    """Max-pooling of 2 x 2 pixels that do not overlap: torch's own also notes where each maximum is."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if maps.requires_grad and torch.is_grad_enabled():  # of equal maxima torch's own follows the first
            return functional.max_pool2d(maps, 2)
        height, width = (side // 2 * 2 for side in maps.shape[2:])
        lines = torch.unflatten(maps[:, :, :height, :width].movedim(1, -1), 1, (-1, 2))
        pixels = torch.unflatten(torch.maximum(lines[:, :, 0], lines[:, :, 1]), 2, (-1, 2))
        return torch.maximum(pixels[:, :, :, 0], pixels[:, :, :, 1]).movedim(-1, 1)


def _halve_maps(rest: fx.GraphModule, shapes: dict[fx.Node, torch.Size]) -> None:
    """Let max-pooling of 2 x 2 be maxima; a rectification that it alone reads follows it, on fewer values."""
    modules = layers_by_name(rest)
    for node in list(rest.graph.nodes):
        if len(shapes.get(node, ())) != 4 or not _halves(node, modules):
            continue
        before = node.args[0]
        assert isinstance(before, fx.Node)
        node.op, node.target, node.args, node.kwargs = "call_module", f"halved_{node.name}", (before,), {}
        rest.add_submodule(node.target, HalvedMaps())
        if is_rectification(before, modules) and len(before.users) == 1:
            node.replace_all_uses_with(before)
            node.args, before.args = before.args[:1], (node, *before.args[1:])
            node.append(before)
            shapes[before] = shapes[node]
    rest.delete_all_unused_submodules()
    rest.recompile()


def enter_halved(rest: fx.GraphModule, entrance: fx.Node, shapes: dict[fx.Node, torch.Size]) -> bool:
    """If `HalvedMaps` alone reads an entrance of a quickened graph, let it be entered by halved maps."""
    if len(entrance.users) != 1:
        return False
    (first,) = entrance.users
    if first.op != "call_module" or not isinstance(rest.get_submodule(str(first.target)), HalvedMaps):
        return False
    first.replace_all_uses_with(entrance)
    rest.graph.erase_node(first)
    shapes[entrance] = shapes[first]
    rest.delete_all_unused_submodules()
    rest.recompile()
    return True


def _halves(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether it is max-pooling of 2 x 2 pixels that do not overlap."""
    pool = modules.get(str(node.target)) if node.op == "call_module" else None
    if node.target is functional.max_pool2d:
        pool = nn.MaxPool2d(*cast("Any", node.args[1:]), **cast("Any", node.kwargs))
    if not isinstance(pool, nn.MaxPool2d) or pool.ceil_mode or pool.return_indices:
        return False
    sizes = zip((pool.kernel_size, pool.stride, pool.padding, pool.dilation), (2, 2, 0, 1), strict=True)
    return all(size in (asked, (asked, asked), [asked, asked]) for size, asked in sizes)


def _flatten_as_it_lies(rest: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size], traced: Traced) -> None:
    """Let a linear layer read maps channels last, as they lie in memory: its weights move instead."""
    modules = layers_by_name(rest)
    for node in list(rest.graph.nodes):
        linear = modules.get(str(node.target)) if node.op == "call_module" else None
        flat = node.args[0] if node.args else None
        if not isinstance(linear, nn.Linear) or not isinstance(flat, fx.Node) or len(flat.users) > 1:
            continue
        maps = flat.args[0] if flat.args else None
        if not isinstance(maps, fx.Node) or len(shapes.get(maps, ())) != 4:
            continue
        (n, *map_shape), flattens = shapes[maps], flat.target in ("flatten", "reshape", torch.flatten)
        if flat.op == "call_module":
            flattens = isinstance(modules[str(flat.target)], nn.Flatten)
        if flattens and shapes.get(flat) == (n, math.prod(map_shape)):
            node.target = f"moved_{node.name}"
            rest.add_submodule(node.target, traced.make(_over_channels_last, linear, map_shape[0]))
            with rest.graph.inserting_before(node):
                flat.replace_all_uses_with(rest.graph.call_function(_flatten_channels_last, (maps,)))
            rest.graph.erase_node(flat)


def _over_channels_last(linear: nn.Linear, channels: int) -> nn.Linear:
    """The layer for maps that are flattened as they lie in memory."""
    moved = copy.copy(linear)
    moved._parameters = dict(linear._parameters)
    weight = linear.weight.view(len(linear.weight), channels, -1).transpose(1, 2).flatten(1)
    moved.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return moved


def _flatten_channels_last(maps: torch.Tensor) -> torch.Tensor:
    return maps.movedim(1, -1).flatten(1)


def _put_in_place(rest: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size]) -> None:
    """Let activations and sums overwrite an input that nobody else reads: every value here is its own."""
    modules = layers_by_name(rest)

    def is_free(node: object, reader: fx.Node) -> bool:
        if not isinstance(node, fx.Node) or len(node.users) > 1 or shapes.get(node) != shapes.get(reader):
            return False
        if node.op == "call_module":
            module = modules[str(node.target)]
            # where a rectified map is zero, its slope is: a pass back has to know
            return isinstance(module, PRODUCING) and not getattr(module, "rectified", False)
        return node.op == "placeholder" or node.target in (operator.add, operator.iadd)

    for node in rest.graph.nodes:
        if node.op == "call_module" and getattr(modules[str(node.target)], "inplace", None) is False:
            if is_free(node.args[0], node):
                module = copy.copy(modules[str(node.target)])
                module.inplace = True
                node.target = f"inplace_{node.name}"
                rest.add_submodule(node.target, module)
                modules[node.target] = module
        elif node.target in INPLACE_FUNCTIONS and is_free(node.args[0], node):
            node.args, node.kwargs = node.args[:1], {"inplace": True}
        elif node.target in (operator.add, torch.add) and len(node.args) == 2 and not node.kwargs:
            first, second = node.args
            if is_free(first, node):
                node.target = operator.iadd
            elif is_free(second, node) and isinstance(first, fx.Node):
                node.target, node.args = operator.iadd, (second, first)
    rest.recompile()


PRODUCING = (nn.Conv2d, FusedConv, HalvedMaps, nn.Linear, nn.BatchNorm2d, *PRODUCTS)
