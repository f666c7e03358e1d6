"""A network as a graph of operations: a copy in which nothing works in place."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import fx, nn

from fragile_neurons.classifier import evaluating
from fragile_neurons.neurons import TRANSPARENT

OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

Made = TypeVar("Made", bound=nn.Module)


class UntraceableError(Exception):
    """The network cannot be had as a graph; the message says why."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A module's evaluation pass: `graph`, over copied weights, channels last, nothing in place.

    images: how many there were when the shapes were taken. shapes: of every tensor, by its node's name.
    made: layers with weights of their own, by what they were made of.
    """

    graph: fx.GraphModule
    images: int
    shapes: Mapping[str, torch.Size]
    made: dict[tuple[Hashable, ...], nn.Module] = field(default_factory=dict)

    def make(self, maker: Callable[..., Made], *arguments: Hashable) -> Made:
        """What the maker makes of these arguments, the first time: a copy of the weights for each split
        would fill the memory.
        """
        key = (maker, *arguments)
        if key not in self.made:
            self.made[key] = maker(*arguments)
        return cast("Made", self.made[key])

    def nodes(self, module: str, call: int | None) -> list[fx.Node]:
        """The nodes that call a module; only the n-th of them unless `call` is None."""
        calls = [
            node for node in self.graph.graph.nodes if node.op == "call_module" and node.target == module
        ]
        return calls if call is None else calls[call : call + 1]


def trace(module: nn.Module, inputs: torch.Tensor) -> Traced:
    """The pass that the module makes over these inputs, (n, channels, height, width).

    Raises UntraceableError where torch.fx gives up or an operation cannot be had out of place.
    """
    try:
        with evaluating(module):
            graph = copy.deepcopy(fx.symbolic_trace(module))
            _put_arguments_in_order(graph)
    except Exception as error:  # control flow on values, and whatever else a foreign forward does
        raise UntraceableError(f"torch.fx: {' '.join(str(error).split())[:200]}") from error
    _put_out_of_place(graph)
    _hide_what_torch_has_not_made(graph)
    graph.eval().requires_grad_(False)
    graph.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            values = evaluate(graph, graph.graph.nodes, inputs)
    except Exception as error:
        raise UntraceableError(f"the graph does not run: {' '.join(str(error).split())[:200]}") from error
    shapes = {name: value.shape for name, value in values.items() if isinstance(value, torch.Tensor)}
    return Traced(graph, len(inputs), shapes)


def evaluate(
    graph: fx.GraphModule,
    nodes: Iterable[fx.Node],
    inputs: torch.Tensor,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The values of these nodes by name, `known` ones included; in order, each input known or before."""
    interpreter = fx.Interpreter(graph, garbage_collect_values=False)
    values = dict(known or {})
    for node in nodes:
        if node.op == "placeholder":
            values[node.name] = inputs
        else:
            interpreter.env.update((one, values[one.name]) for one in node.all_input_nodes)
            values[node.name] = interpreter.run_node(node)
    return values


def _put_arguments_in_order(graph: fx.GraphModule) -> None:
    """Let modules be called by position, whatever the names by which their inputs are handed over."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.kwargs:
            forward = graph.get_submodule(str(node.target)).forward
            bound = inspect.signature(forward).bind(*node.args, **node.kwargs)
            node.args, node.kwargs = bound.args, bound.kwargs


def _put_out_of_place(graph: fx.GraphModule) -> None:
    """Replace what changes its input; whoever read the input afterwards reads the result instead."""
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    inplace = set()
    for name, module in graph.named_modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - a plain attribute, which nn.Module hides from types
            if not isinstance(module, nn.modules.dropout._DropoutNd):
                inplace.add(name)
    for node in graph.graph.nodes:
        if _make_functional(node, inplace):
            for changed in _same_tensor(graph, node.args[0]):
                for user in list(changed.users):
                    if order[user] > order[node]:
                        user.replace_input_with(changed, node)
    graph.recompile()


def _same_tensor(graph: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """The node, and those before it whose very tensor it hands on."""
    yield node
    while node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), TRANSPARENT):
        (node,) = node.all_input_nodes
        yield node


def _make_functional(node: fx.Node, inplace: Collection[str]) -> bool:
    """Whether the node worked in place, as these modules did; it does not any more."""
    if node.op == "call_module":
        return node.target in inplace
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if node.target is operator.setitem or "out" in node.kwargs:
            raise UntraceableError(f"{node} writes into a tensor")
        if node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
            return True
        if name.endswith("_") and hasattr(torch, name[:-1]):
            node.target = getattr(torch, name[:-1])
            return True
        return _clear_inplace_argument(node)
    if node.op == "call_method" and node.target == "view":
        node.target = "reshape"  # channels last, memory lies in another order
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        if not hasattr(torch.Tensor, str(node.target)[:-1]):
            raise UntraceableError(f"{node} writes into a tensor")
        node.target = str(node.target)[:-1]
        return True
    return False


def _clear_inplace_argument(node: fx.Node) -> bool:
    assert callable(node.target)
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a builtin without a signature has no such argument
        return False
    if not bound.arguments.get("inplace", False):
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


class Opaque(nn.Module):
    """A layer with hooks or with a forward of its own, which nobody may take for what its class says."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: object) -> object:
        return self.layer(*inputs)


def _hide_what_torch_has_not_made(graph: fx.GraphModule) -> None:
    for name in {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}:
        layer = graph.get_submodule(name)
        hooks = (
            *(layer._forward_pre_hooks, layer._forward_hooks),
            *(layer._backward_pre_hooks, layer._backward_hooks),
        )
        home = type(layer).forward.__module__
        if any(hooks) or "forward" in vars(layer) or not home.startswith("torch.nn.modules."):
            graph.add_submodule(name, Opaque(layer))


def layers_by_name(graph: fx.GraphModule) -> dict[str, Any]:
    """Each layer under every name by which nodes call it."""
    return dict(graph.named_modules(remove_duplicate=False))
