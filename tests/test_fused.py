"""Convolutions that add and rectify at once: the same values, and nothing overwritten that is still read."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

import fragile_neurons as fn
from fragile_neurons.interventions import drop
from fragile_neurons.models.architectures import resnet20
from fragile_neurons.neurons import executed_layers
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.fused import FusedConv, fuse
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.products import QuickLinear
from fragile_neurons.sweeps.reference import Reference

SHAPE = (3, 4, 6, 6)


class Wired(nn.Module):
    """Convolutions of one shape, wired by a function of it and its input."""

    def __init__(self, wiring: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.wiring = wiring
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.relu, self.drop = nn.ReLU(), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.wiring(self, x)
        return result


def residual(net: Any, x: Any) -> Any:
    return net.relu(net.b(net.relu(net.a(x))) + x)


def last_reader_is_later(net: Any, x: Any) -> Any:
    y = net.c(x)
    return net.relu(net.a(y) + x) + net.relu(net.b(x))


def read_until_it_is_overwritten(net: Any, x: Any) -> Any:
    y = net.relu(net.c(x))
    b, a, z = net.b(x), net.a(y), net.relu(net.a(x))
    first = functional.relu(b + y)
    return torch.relu(torch.add(a, z)) * first


def both_want_the_other(net: Any, x: Any) -> Any:
    y, z = net.relu(net.a(x)), net.relu(net.b(x))
    b, a = net.c(y), net.c(z)
    return net.relu(a + y) + net.relu(b + z)


def added_to_what_it_reads(net: Any, x: Any) -> Any:
    y = net.relu(net.a(x))
    return net.relu(net.b(y) + y)


def kept_as_a_view(net: Any, x: Any) -> Any:
    y = net.relu(net.a(x))
    kept = y[:, :2]
    z = net.relu(net.b(x) + y)
    return z.sum(dim=1) + kept.sum(dim=1)


def handed_on(net: Any, x: Any) -> Any:
    y = net.relu(net.a(x))
    same = net.drop(y)
    return net.relu(net.b(x) + y) + same


def twice_itself(net: Any, x: Any) -> Any:
    y = net.a(x)
    return net.relu(y + y)


def of_another_shape(net: Any, x: Any) -> Any:
    return net.relu(net.a(x) + net.b(x).mean(dim=(2, 3), keepdim=True))


def padded(net: Any, x: Any) -> Any:
    short = functional.pad(x[:, :2], (0, 0, 0, 0, 1, 1))
    return net.relu(net.a(x) + short)


def numbers(net: Any, x: Any) -> Any:
    return net.relu(net.a(x) + 0.5) + net.relu(torch.add(net.b(x), x, alpha=2))


WIRINGS: dict[Callable[[Any, Any], Any], tuple[int, int]] = {
    residual: (2, 1),
    last_reader_is_later: (1, 0),
    read_until_it_is_overwritten: (3, 1),
    both_want_the_other: (3, 1),
    added_to_what_it_reads: (1, 0),
    kept_as_a_view: (1, 0),
    handed_on: (1, 0),
    twice_itself: (0, 0),
    of_another_shape: (0, 0),
    padded: (1, 1),
    numbers: (0, 0),
}
"""How many convolutions of each do more than that, and how many of them add."""


def as_graph(wiring: Callable[[Any, Any], Any]) -> tuple[nn.Module, fx.GraphModule, torch.Tensor]:
    """A wired network, the same as a graph with its convolutions fused, and images."""
    torch.manual_seed(0)
    module = Wired(wiring).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    graph = fx.symbolic_trace(module)
    images = torch.randn(SHAPE).contiguous(memory_format=torch.channels_last)
    interpreter = fx.Interpreter(graph, garbage_collect_values=False)
    interpreter.run(images)
    shapes = {node: value.shape for node, value in interpreter.env.items() if hasattr(value, "shape")}
    fuse(graph, shapes, rectify=True)
    return module, graph, images


@pytest.mark.parametrize("wiring", WIRINGS, ids=lambda wiring: wiring.__name__)
def test_fused_networks_have_the_same_values(wiring: Callable[[Any, Any], Any]) -> None:
    module, graph, images = as_graph(wiring)
    expected = module(images)
    torch.testing.assert_close(graph(images.clone(memory_format=torch.preserve_format)), expected)
    fused = [node for node in graph.graph.nodes if isinstance(called(graph, node), FusedConv)]
    assert (len(fused), sum(len(node.args) == 2 for node in fused)) == WIRINGS[wiring]
    assert not any(node.target is operator.iadd for node in graph.graph.nodes)


@pytest.mark.parametrize("wiring", WIRINGS, ids=lambda wiring: wiring.__name__)
def test_fused_networks_have_the_same_gradients(wiring: Callable[[Any, Any], Any]) -> None:
    module, graph, images = as_graph(wiring)
    slopes = torch.randn_like(module(images))

    def gradient(network: nn.Module) -> torch.Tensor:
        leaves = images.clone(memory_format=torch.preserve_format).requires_grad_(True)
        (found,) = torch.autograd.grad(network(leaves), leaves, slopes)
        return found

    torch.testing.assert_close(gradient(graph), gradient(module), atol=1e-5, rtol=1e-5)


def called(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False},
    ],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass_is_as_good_as_three(
    options: dict[str, Any], layout: torch.memory_format, rectified: bool, added: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, **options, dtype=dtype).requires_grad_(False)
    maps, other = (torch.randn(SHAPE, dtype=dtype).contiguous(memory_format=layout) for _ in range(2))
    expected = conv(maps) + other if added else conv(maps)
    expected = functional.relu(expected) if rectified else expected
    found = FusedConv(conv, rectified)(maps, other if added else None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_it_rounds_as_the_parts_do() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    maps = torch.randn(SHAPE).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FusedConv(conv, rectified=True)(maps), functional.relu(conv(maps)))


def test_the_blocks_of_a_residual_network_are_fused() -> None:
    classifier, images = fn.Classifier(resnet20()).eval(), torch.rand(4, 3, 32, 32)
    first = executed_layers(classifier, images)[0]
    rest = Exact(classifier, images).split(first.site("conv")).rest
    fused = [node for node in rest.graph.nodes if isinstance(called(rest, node), FusedConv)]
    assert (len(fused), sum(len(node.args) == 2 for node in fused)) == (17, 9)


class Shares(nn.Module):
    """What each map has of the sum of all; without the first there is nothing to share: 0 / 0."""

    def __init__(self, divide: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.divide = divide
        self.a, self.b, self.out = (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.a(x))
        shares = functional.relu(self.b(self.divide(maps, maps.sum(dim=(1, 2, 3), keepdim=True))))
        result: torch.Tensor = self.out(shares.mean(dim=(2, 3)))
        return result


@pytest.mark.parametrize(
    "divide",
    [
        operator.truediv,
        operator.floordiv,
        torch.divide,
        lambda maps, total: maps.div(total),
        lambda maps, total: torch.addcdiv(maps, maps, total),
        lambda maps, total: maps * total.pow(-1),
        lambda maps, total: maps - (total.log() - total.log()),
    ],
)
def test_a_nan_inside_stays_one(divide: Callable[[Any, Any], Any]) -> None:
    torch.manual_seed(0)
    module, images = Shares(divide), torch.rand(4, 3, 6, 6)
    module.a.load_state_dict({"weight": torch.full((4, 3, 1, 1), -1.0), "bias": torch.tensor([4.0, 0, 0, 0])})
    classifier = fn.Classifier(module).eval()
    site = executed_layers(classifier, images)[0].site("conv")
    pairs = Pairs.of([0, 1], torch.arange(4))
    expected, found = (
        way.walk(images, [site]).logits(site, drop(0.0), pairs)
        for way in (Reference(classifier), Exact(classifier, images))
    )
    assert expected[:4].isnan().all()
    assert expected[4:].isfinite().all()
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (1, 12), (2, 3, 12)])
def test_a_quick_linear_layer_is_the_layer(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, rows = nn.Linear(12, 7, bias=bias).requires_grad_(False), torch.rand(shape)
    quick = QuickLinear(linear)
    torch.testing.assert_close(quick(rows), linear(rows))
    torch.testing.assert_close(quick(rows.mT.contiguous().mT), linear(rows))
    given = rows.clone().requires_grad_(True)
    (slopes,) = torch.autograd.grad(quick(given).square().sum(), given)
    (expected,) = torch.autograd.grad(linear(given).square().sum(), given)
    assert torch.equal(slopes, expected)
    assert quick.to(torch.float64)(rows.double()).dtype == torch.float64
