"""A graph, split at a site: what treats each channel alone, the first layers that mix them, the rest."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from fragile_neurons.interventions import Replacement, put
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.channelwise import Place, follow
from fragile_neurons.sweeps.graph import Traced, UntraceableError, lighten
from fragile_neurons.sweeps.pairs import Pairs

MAP_VALUES = 1 << 19  # of a mean tensor in the rest: what follows finds them in the cache
FEWEST_ROWS, MOST_ROWS = 16, 1024

INPLACE_FUNCTIONS = {functional.relu, functional.relu6, functional.silu, functional.hardswish}


@dataclass(frozen=True, eq=False)
class Act:
    """The second input of a split graph: which rows change which channel, and how."""

    pairs: Pairs
    replace: Replacement


@dataclass(frozen=True, eq=False)
class Split:
    """A network with the site's channels replaced, row by row.

    whole: from inputs and an Act to outputs. wanted: the names of values of the traced graph that the
    front and the rest ask for; needed: its nodes that lead to them, in order. front: from the site
    on, nodes of `whole` that treat each channel alone; starts: of those that stand for the site, the
    traced node. places: where the channels are, by node of the front. mixing: the layers that first
    mix them. ends: of the front, what these and the rest read. rest: from the values of `boundary`, in
    order, to outputs. rows: how many suit the rest.
    """

    whole: fx.GraphModule
    wanted: frozenset[str]
    needed: tuple[fx.Node, ...]
    front: tuple[fx.Node, ...]
    starts: Mapping[fx.Node, str]
    places: Mapping[fx.Node, Place]
    mixing: Mapping[fx.Node, nn.Module]
    ends: tuple[fx.Node, ...]
    rest: fx.GraphModule
    boundary: tuple[fx.Node, ...]
    rows: int


def split(traced: Traced, site: Site) -> Split:
    """Split at a site; raises UntraceableError where the rows of the rest would not be images."""
    at_site = [node.name for node in traced.nodes(site.module, site.call)]
    if len(at_site) != site.outputs:
        raise UntraceableError(f"{site.module} is not called {site.outputs} times in the graph")
    whole = lighten(traced, at_site)
    shapes = dict(traced.shapes)
    act, puts = _insert_puts(whole, at_site, site.axis, shapes)
    modules = dict(whole.named_modules())
    places: dict[fx.Node, Place] = {}
    starts: dict[fx.Node, str] = {}
    dependent: set[fx.Node] = set()
    dense: list[fx.Node] = []
    mixing: dict[fx.Node, nn.Module] = {}
    for node in whole.graph.nodes:
        changed = [one for one in node.all_input_nodes if one in dependent]
        if node in puts and puts[node] not in dependent:
            starts[node] = puts[node].name
            places[node] = Place(site.axis, 1)
        elif not changed:
            continue
        elif node not in puts and all(one in places for one in changed):
            place = follow(node, places, shapes, modules)
            if place is not None:
                places[node] = place
            elif _mixes(node, places, shapes, modules):
                mixing[node] = modules[str(node.target)]
            else:
                dense.append(node)
        else:
            dense.append(node)
        dependent.add(node)
    rest, boundary = _rest(whole, dense, {act, *places, *mixing}, shapes, traced.images)
    wanted = {*starts.values()}
    for node in boundary:
        if node not in dependent and node is not act:
            wanted.add(node.name)
    for node in places:
        wanted |= {one.name for one in node.all_input_nodes if one not in dependent and one is not act}
    return Split(
        whole=whole,
        wanted=frozenset(wanted),
        needed=_ancestors(traced.graph, wanted),
        front=tuple(places),
        starts=starts,
        places=places,
        mixing=mixing,
        ends=tuple(node for node in places if node in boundary or any(user in mixing for user in node.users)),
        rest=rest,
        boundary=boundary,
        rows=_suitable_rows(rest, shapes),
    )


def _insert_puts(
    graph: fx.GraphModule, at_site: Sequence[str], axis: int, shapes: dict[str, torch.Size]
) -> tuple[fx.Node, dict[fx.Node, fx.Node]]:
    """Give the graph an Act as its second input; by node that replaces channels, the node before it."""
    nodes = {node.name: node for node in graph.graph.nodes}
    inputs = next(node for node in graph.graph.nodes if node.op == "placeholder")
    with graph.graph.inserting_after(inputs):
        act = graph.graph.placeholder("act")
    puts = {}
    for name in at_site:
        before = nodes[name]
        with graph.graph.inserting_after(before):
            changed = graph.graph.call_function(_put, (before, axis, act))
        before.replace_all_uses_with(changed, delete_user_cb=lambda user, own=changed: user is not own)
        shapes[changed.name] = shapes[name]
        puts[changed] = before
    graph.recompile()
    return act, puts


def _put(output: torch.Tensor, axis: int, act: Act) -> torch.Tensor:
    return put(output, axis, act.pairs.channels, act.pairs.images, act.replace)


def _mixes(
    node: fx.Node,
    places: Mapping[fx.Node, Place],
    shapes: Mapping[str, torch.Size],
    modules: Mapping[str, nn.Module],
) -> bool:
    """Whether the node is a linear layer whose only input holds the channels where Mixing can read them."""
    if node.op != "call_module" or node.args[0] not in places:
        return False
    module, before = modules[str(node.target)], node.args[0]
    assert isinstance(before, fx.Node)
    place, shape = places[before], shapes[before.name]
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and place == Place(1, 1) and len(shape) == 4
    return isinstance(module, nn.Linear) and place.axis == len(shape) - 1


def _rest(
    whole: fx.GraphModule,
    dense: Sequence[fx.Node],
    entering: set[fx.Node],
    shapes: Mapping[str, torch.Size],
    images: int,
) -> tuple[fx.GraphModule, tuple[fx.Node, ...]]:
    """The dense nodes as a graph of its own, and the nodes whose values go in."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    boundary: dict[fx.Node, fx.Node] = {}

    def copied(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        if node in entering or (node.name in shapes and node.op != "get_attr"):
            if node not in entering and shapes[node.name][:1] != (images,):
                raise UntraceableError(f"the rows of {node} are not images")
            with graph.inserting_before():
                copies[node] = boundary[node] = graph.placeholder(node.name)
        else:  # a parameter, or a number taken from a shape
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in dense:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], copied))
        else:
            copies[node] = graph.node_copy(node, copied)
    rest = fx.GraphModule(whole, graph)
    known = {copies[node]: shapes[node.name] for node in copies if node.name in shapes}
    _flatten_as_it_lies(rest, known)
    _put_in_place(rest, known)
    sources = {entrance: node for node, entrance in boundary.items()}
    order = [sources[node] for node in graph.nodes if node.op == "placeholder"]
    return rest, tuple(order)


def _flatten_as_it_lies(rest: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size]) -> None:
    """Let a linear layer read maps channels last, as they lie in memory: its weights move instead."""
    modules = dict(rest.named_modules())
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
            channels, height, width = map_shape
            moved = copy.copy(linear)
            moved._parameters = dict(linear._parameters)
            weight = linear.weight.view(-1, channels, height * width).transpose(1, 2).flatten(1)
            moved.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            node.target = f"moved_{node.name}"
            rest.add_submodule(node.target, moved)
            with rest.graph.inserting_before(node):
                flat.replace_all_uses_with(rest.graph.call_function(_flatten_channels_last, (maps,)))
            rest.graph.erase_node(flat)


def _flatten_channels_last(maps: torch.Tensor) -> torch.Tensor:
    return maps.movedim(1, -1).flatten(1)


def _put_in_place(rest: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size]) -> None:
    """Let activations and sums overwrite an input that nobody else reads: every value here is its own."""
    modules = dict(rest.named_modules())

    def is_free(node: object, reader: fx.Node) -> bool:
        if not isinstance(node, fx.Node) or len(node.users) > 1 or shapes.get(node) != shapes.get(reader):
            return False
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
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


def _ancestors(graph: fx.GraphModule, wanted: set[str]) -> tuple[fx.Node, ...]:
    """The nodes of these names and all that they need, in order."""
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.name in wanted or any(user in found for user in node.users):
            found.add(node)
    return tuple(node for node in graph.graph.nodes if node in found)


def _suitable_rows(rest: fx.GraphModule, shapes: Mapping[str, torch.Size]) -> int:
    """The power of two of rows whose maps, on average, still fit into the cache."""
    sizes = [shapes[node.name][1:].numel() for node in rest.graph.nodes if node.name in shapes]
    rows = 1 << round(math.log2(MAP_VALUES * len(sizes) / max(1, sum(sizes)))) if sizes else FEWEST_ROWS
    return min(max(rows, FEWEST_ROWS), MOST_ROWS)
