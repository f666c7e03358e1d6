"""A graph, split at a site: what treats each channel alone, the first layers that mix them, the rest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from fragile_neurons.interventions import Replacement, put
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.channelwise import Place, follow
from fragile_neurons.sweeps.fused import makes_no_nan
from fragile_neurons.sweeps.graph import Traced, UntraceableError, layers_by_name
from fragile_neurons.sweeps.lighten import lighten
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.quick import enter_halved, quicken

MAP_VALUES = 1 << 22  # of the rest's largest tensor: what follows still finds most of them in the cache
FEWEST_ROWS, MOST_ROWS = 16, 2048


@dataclass(frozen=True, eq=False)
class Intervention:
    """The second input of a split graph: which rows change which channel, and how."""

    pairs: Pairs
    replace: Replacement


@dataclass(frozen=True, eq=False)
class Split:
    """A network with the site's channels replaced, row by row.

    starts: the nodes that stand for the site, and the traced node of each. places: where the channels are, by
    node of the front, which is what treats each channel alone from the site on. mixing: the layers that first
    mix them; halved: those of them whose maps the rest takes after max-pooling of 2 x 2. ends: of the front,
    what these and the rest read. front: nodes of the traced graph that lead from the starts to the ends.
    wanted: the names of its values that the front, the mixing layers and the rest ask for; needed: its nodes
    that lead to them, in order. rest: from the values of `boundary`, in order, to outputs; again: whether it
    replaces channels, too. rows: how many suit the rest.
    """

    starts: Mapping[fx.Node, str]
    places: Mapping[fx.Node, Place]
    mixing: Mapping[fx.Node, nn.Module]
    halved: frozenset[fx.Node]
    ends: tuple[fx.Node, ...]
    front: tuple[fx.Node, ...]
    wanted: frozenset[str]
    needed: tuple[fx.Node, ...]
    rest: fx.GraphModule
    boundary: tuple[fx.Node, ...]
    again: bool
    rows: int

    def name(self, node: fx.Node) -> str:
        """Of the value in the traced graph that a node of the front stands for."""
        return self.starts.get(node, node.name)


@dataclass(frozen=True, eq=False)
class Unsplit:
    """The same network in one piece, and how many rows suit it; order: of the graph's inputs, 0 the images'
    and 1 the Intervention.
    """

    graph: fx.GraphModule
    order: tuple[int, ...]
    rows: int

    def __call__(self, inputs: torch.Tensor, intervention: Intervention) -> object:
        given = inputs, intervention
        return self.graph(*(given[place] for place in self.order))


def leave_whole(traced: Traced, site: Site) -> Unsplit:
    """Do not split at a site; raises UntraceableError as `split` does."""
    whole, shapes, intervention, _ = _intervened(traced, site)
    entering = {node for node in whole.graph.nodes if node.op == "placeholder"}
    dense = [node for node in whole.graph.nodes if node not in entering]
    graph, boundary, _, rows = _rest(whole, dense, entering, (), shapes, traced)
    return Unsplit(graph, tuple(int(node is intervention) for node in boundary), rows)


def record(traced: Traced) -> fx.GraphModule:
    """The network as it is, quick as far as no value is lost: from inputs to all values, by name."""
    whole = lighten(traced, traced.shapes)
    entrance, *dense, output = whole.graph.nodes
    output.args = ({node.name: node for node in (entrance, *dense)} | {output.name: output.args[0]},)
    recorded, *_ = _rest(whole, [*dense, output], {entrance}, (), traced.shapes, traced)
    return recorded


def split(traced: Traced, site: Site) -> Split:
    """Split at a site; raises UntraceableError where the rows of the rest would not be images."""
    whole, shapes, intervention, puts = _intervened(traced, site)
    modules = layers_by_name(whole)
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
    entering = {intervention, *places, *mixing}
    rest, boundary, halved, rows = _rest(whole, dense, entering, mixing, shapes, traced)
    ends = [node for node in places if node in boundary or any(user in mixing for user in node.users)]
    end_names = {starts.get(node, node.name) for node in ends}
    after_starts = _descendants(traced.graph, set(starts.values()))
    dependent.add(intervention)  # no value of the traced graph
    beside = {*boundary, *(one for node in places for one in node.all_input_nodes)} - dependent
    wanted = {*starts.values(), *end_names, *(node.name for node in {*mixing, *beside})}
    return Split(
        starts=starts,
        places=places,
        mixing=mixing,
        halved=halved,
        ends=tuple(ends),
        front=tuple(node for node in _ancestors(traced.graph, end_names) if node in after_starts),
        wanted=frozenset(wanted),
        needed=_ancestors(traced.graph, wanted),
        rest=rest,
        boundary=boundary,
        again=intervention in boundary,
        rows=rows,
    )


def _intervened(
    traced: Traced, site: Site
) -> tuple[fx.GraphModule, dict[str, torch.Size], fx.Node, dict[fx.Node, fx.Node]]:
    """A lighter copy of the graph with an Intervention at the site, its shapes; then as _insert_puts."""
    at_site = [node.name for node in traced.nodes(site.module, site.call)]
    if len(at_site) != site.outputs:
        raise UntraceableError(f"{site.module} is not called {site.outputs} times in the graph")
    whole, shapes = lighten(traced, at_site), dict(traced.shapes)
    return whole, shapes, *_insert_puts(whole, at_site, site.axis, shapes)


def _insert_puts(
    graph: fx.GraphModule, at_site: Sequence[str], axis: int, shapes: dict[str, torch.Size]
) -> tuple[fx.Node, dict[fx.Node, fx.Node]]:
    """Add an Intervention as second input; by node that replaces channels, the node before it."""
    nodes = {node.name: node for node in graph.graph.nodes}
    inputs = next(node for node in graph.graph.nodes if node.op == "placeholder")
    with graph.graph.inserting_after(inputs):
        intervention = graph.graph.placeholder("intervention")
    puts = {}
    for name in at_site:
        before = nodes[name]
        with graph.graph.inserting_after(before):
            changed = graph.graph.call_function(_put, (before, axis, intervention))
        before.replace_all_uses_with(changed, delete_user_cb=lambda user, own=changed: user is not own)
        shapes[changed.name] = shapes[name]
        puts[changed] = before
    graph.recompile()
    return intervention, puts


def _put(output: torch.Tensor, axis: int, intervention: Intervention) -> torch.Tensor:
    return put(output, axis, intervention.pairs.channels, intervention.pairs.images, intervention.replace)


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
    mixing: Collection[fx.Node],
    shapes: Mapping[str, torch.Size],
    traced: Traced,
) -> tuple[fx.GraphModule, tuple[fx.Node, ...], frozenset[fx.Node], int]:
    """The dense nodes as a graph of its own, the nodes whose values go in, and of `Split` halved and rows."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    boundary: dict[fx.Node, fx.Node] = {}

    def copied(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        if node in entering or (node.name in shapes and node.op != "get_attr"):
            if node not in entering and shapes[node.name][:1] != (traced.images,):
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
    quicken(rest, known, traced, rectify=makes_no_nan(whole.graph, shapes))
    halved = {node for node in mixing if node in boundary and enter_halved(rest, boundary[node], known)}
    sources = {entrance: node for node, entrance in boundary.items()}
    order = [sources[node] for node in graph.nodes if node.op == "placeholder"]
    return (
        rest,
        tuple(order),
        frozenset(halved),
        _suitable_rows([known[node] for node in graph.nodes if node in known]),
    )


def _ancestors(graph: fx.GraphModule, wanted: set[str]) -> tuple[fx.Node, ...]:
    """The nodes of these names and all that they need, in order."""
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.name in wanted or any(user in found for user in node.users):
            found.add(node)
    return tuple(node for node in graph.graph.nodes if node in found)


def _descendants(graph: fx.GraphModule, names: set[str]) -> set[fx.Node]:
    """The nodes that need one of these names, but for those named themselves."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.name not in names and any(one in found or one.name in names for one in node.all_input_nodes):
            found.add(node)
    return found


def _suitable_rows(shapes: Sequence[torch.Size]) -> int:
    """The power of two of rows of which the largest of these values have about so many numbers."""
    largest = max((shape[1:].numel() for shape in shapes), default=1)
    rows = 1 << round(math.log2(MAP_VALUES / max(1, largest)))
    return min(max(rows, FEWEST_ROWS), MOST_ROWS)
