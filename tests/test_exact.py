"""The exact sweep against the reference: on drawn networks, on the zoo, and what it may not do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
import torchvision
from drawn import classifiers
from hypothesis import HealthCheck, Phase, given, settings
from torch.nn import functional

import fragile_neurons as fn
from fragile_neurons.attacks.fgsm import fgsm, loss_gradient
from fragile_neurons.foreign import logits_of
from fragile_neurons.interventions import drop, intervening, patch
from fragile_neurons.losses import margins
from fragile_neurons.models.architectures import resnet20
from fragile_neurons.neurons import Layer, Site, executed_layers
from fragile_neurons.sweeps import products
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.graph import evaluate
from fragile_neurons.sweeps.pairs import Pairs, tail_rows, whole_runs
from fragile_neurons.sweeps.products import QuickLinear, SmallMaps, StridedPixels, Winograd
from fragile_neurons.sweeps.quick import HalvedMaps
from fragile_neurons.sweeps.reference import Reference
from fragile_neurons.sweeps.split import Intervention, Split

IMAGES, CHANNELS = 8, 8
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are tiny: two threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def swept_layers(classifier: fn.Classifier, images: torch.Tensor) -> list[Layer]:
    """The first, the middle and the last layer that can be swept."""
    layers = [layer for layer in executed_layers(classifier, images) if not layer.is_output]
    return [layers[place] for place in sorted({0, len(layers) // 2, len(layers) - 1})]


def assert_same(found: torch.Tensor, expected: torch.Tensor, labels: torch.Tensor, what: str) -> None:
    """Equal logits, and equal predictions but for ties."""
    scale = max(float(expected.abs().max()), 1e-6)
    assert float((found - expected).abs().max()) <= TOLERANCE * scale, what
    tied = margins(expected, expected.argmax(-1)).abs() <= TOLERANCE * scale
    assert ((found.argmax(-1) == expected.argmax(-1)) | tied).all(), what


def assert_exact(classifier: fn.Classifier, images: torch.Tensor, seed: int = 0) -> None:
    """Drops, means and patches at every site of three layers, clean and on the same FGSM images."""
    generator = torch.Generator().manual_seed(seed)
    labels = classifier(images).argmax(-1).detach()
    layers = swept_layers(classifier, images)
    attacked = fgsm(classifier, images, labels, [Fraction(1, 20)])[0]
    names = {"conv", "norm", "act"}
    for kind in ("conv", "norm", "act"):
        chosen = [layer for layer in layers if kind in names & {site.name for site in layer.sites}]
        if not chosen:
            continue
        sites = [layer.site(kind) for layer in chosen]
        way, reference = Exact(classifier, images[:4]), Reference(classifier)
        for batch in (images, attacked):
            walk, plain = way.walk(batch, sites), reference.walk(batch, sites)
            for layer, site in zip(chosen, sites, strict=True):
                some = torch.randperm(layer.channels, generator=generator)[:CHANNELS].sort().values.tolist()
                pairs = Pairs.of(some, torch.arange(IMAGES))
                values = torch.rand(layer.channels, generator=generator) - 0.5
                replacements = {"zero": drop(0.0), "values": drop(values.tolist())}
                if site.outputs == 1:
                    own, theirs = walk.maps(site), plain.maps(site)
                    assert torch.allclose(own.reshape(theirs.shape), theirs, atol=1e-4)
                    replacements["patch"] = patch(theirs.flip(0))
                for name, replace in replacements.items():
                    what = f"{layer.name} {kind} {name}"
                    expected = plain.logits(site, replace, pairs)
                    assert_same(walk.logits(site, replace, pairs), expected, labels, what)
        for layer, site in zip(chosen, sites, strict=True):
            assert_same_attacks(way, site, [0, layer.channels - 1], images, labels)
    assert_same_recording(Exact(classifier, images[:4]), images, labels)


def assert_same_recording(way: Exact, images: torch.Tensor, labels: torch.Tensor) -> None:
    """The values from which a sample predicts, and their slopes, are those of the graph as it was traced."""
    inputs = way.classifier.normalise(images).contiguous(memory_format=torch.channels_last)
    inputs.requires_grad_(True)
    graph = way.traced.graph
    plain, found = evaluate(graph, graph.graph.nodes, inputs), way.recorded(inputs)
    names = [name for name, value in plain.items() if isinstance(value, torch.Tensor) and value.requires_grad]
    assert plain.keys() == found.keys()
    expected, own = (
        torch.autograd.grad(
            functional.cross_entropy(logits_of(values["output"]), labels, reduction="sum"),
            [values[name] for name in names],
            allow_unused=True,
        )
        for values in (plain, found)
    )
    assert [slope is None for slope in own] == [slope is None for slope in expected]
    for name, slope, theirs in zip(names, own, expected, strict=True):
        error, value = (one.detach().abs().max() for one in (found[name] - plain[name], plain[name]))
        assert error <= TOLERANCE * value, name
        if theirs is not None:  # rounding decides some maxima, as above
            assert float((slope - theirs).norm()) <= 0.05 * float(theirs.norm()), name


def assert_same_attacks(
    way: Exact, site: Site, channels: list[int], images: torch.Tensor, labels: torch.Tensor
) -> None:
    """The gradient that FGSM takes the sign of, and what FGSM does, with a channel dropped.

    Where rounding decides which of two pixels is larger, or whether one is above zero, a few of a pair's
    many paths lead elsewhere.
    """
    pairs, replace = Pairs.of(channels, torch.arange(len(images))), drop(0.0)
    epsilons = [Fraction(0), Fraction(1, 1000)]
    _, found = loss_gradient(
        way.network(site, Intervention(pairs, replace)), images[pairs.images], labels[pairs.images]
    )
    expected = []
    for channel in channels:
        with intervening(way.classifier, site, [channel], replace):
            expected.append(loss_gradient(way.classifier, images, labels)[1])
    slopes = torch.cat(expected).flatten(1)
    errors, sizes = (found.flatten(1) - slopes).norm(dim=1), slopes.norm(dim=1)
    assert (errors <= 1e-4 * sizes).float().mean() >= 0.5, f"{site} gradients"
    assert (errors <= 0.05 * sizes).float().mean() >= 0.9, f"{site} gradients"
    own, theirs = (
        one.walk(images, [site]).attack(site, replace, pairs, labels, epsilons)
        for one in (way, Reference(way.classifier))
    )
    assert torch.equal(own.zero_gradient, theirs.zero_gradient), f"{site} zero gradients"
    moves = (own.adversarial_logits - theirs.adversarial_logits).abs().amax(dim=2)
    scale = float(theirs.adversarial_logits.abs().max())
    assert (moves[0] <= TOLERANCE * scale).all(), f"{site} attacked with nothing"
    assert (moves[1] <= 10 * TOLERANCE * scale).float().mean() >= 0.9, f"{site} attacked"


@settings(
    max_examples=20,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
@given(classifiers())
def test_drawn_networks_are_swept_exactly(classifier: fn.Classifier) -> None:
    assert_exact(classifier, torch.rand(IMAGES, 2, 6, 6, generator=torch.Generator().manual_seed(1)))


@pytest.mark.slow
@settings(
    max_examples=180,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(classifiers())
def test_many_drawn_networks_are_swept_exactly(classifier: fn.Classifier) -> None:
    assert_exact(classifier, torch.rand(IMAGES, 2, 6, 6, generator=torch.Generator().manual_seed(2)))


ZOO = (
    "resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v3_small", "mobilenet_v2", "densenet121",
    "vgg11_bn", "alexnet", "googlenet", "mnasnet1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_swept_exactly(name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    classifier = fn.Classifier(torchvision.models.get_model(name, num_classes=10, **options)).eval()

    assert_exact(classifier, torch.rand(IMAGES, 3, 64, 64))


def test_resnet20_is_swept_exactly() -> None:
    torch.manual_seed(0)
    assert_exact(fn.Classifier(resnet20()).eval(), torch.rand(IMAGES, 3, 32, 32))


class Branches(torch.nn.Module):
    """Adds rectified maps, of which a gradient needs to know where they were zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Linear(4, 3)
        self.a, self.b = (torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.first(images))
        maps = functional.relu(self.a(maps)) + functional.relu(self.b(maps))
        logits: torch.Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits


class Shortcut(torch.nn.Module):
    """A residual block as in ResNets, between two layers; options: of the shortcut's convolution."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.first, self.mixing = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 1)
        self.shortcut, self.fc = torch.nn.Conv2d(4, 8, 1, **options), torch.nn.Linear(8, 3)
        pad = 2 if options.get("padding") == 1 else 1
        self.block = torch.nn.Conv2d(4, 8, 3, stride=options["stride"], padding=pad)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.mixing(functional.relu(self.first(images))))
        maps = functional.relu(self.shortcut(maps) + self.block(maps))
        logits: torch.Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits


def test_what_a_gradient_needs_is_not_overwritten() -> None:
    torch.manual_seed(0)
    assert_exact(fn.Classifier(Branches()).eval(), torch.rand(IMAGES, 2, 6, 6))


def test_the_splits_of_a_deep_network_share_their_weights() -> None:
    torch.manual_seed(0)
    classifier, images = fn.Classifier(resnet20()).eval(), torch.rand(4, 3, 8, 8)  # some maps are small
    way = Exact(classifier, images)
    splits = [way.split(layer.site("norm")) for layer in executed_layers(classifier, images)[:-1]]
    parts = (module for one in splits for module in (one.rest, *one.mixing.values()))
    held = {value.data_ptr(): value.nbytes for part in parts for value in part.state_dict().values()}
    whole = sum(value.nbytes for value in classifier.state_dict().values())
    assert len(splits) == 19
    assert sum(held.values()) < 4 * whole


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((1, 1), {"kernel_size": 3, "padding": 1}),
        ((1, 1), {"kernel_size": 1}),
        ((2, 2), {"kernel_size": 3, "padding": 1}),
        ((2, 2), {"kernel_size": 2, "stride": 2}),
        ((2, 3), {"kernel_size": (3, 5), "padding": (1, 2), "bias": False}),
        ((3, 3), {"kernel_size": 3, "padding": 1, "stride": 2}),
        ((3, 2), {"kernel_size": 3, "padding": (2, 3), "dilation": (2, 1)}),
        ((1, 1), {"kernel_size": 1, "padding": 1}),
        ((1, 1), {"kernel_size": 1, "padding": 1, "stride": 3}),
    ],
)
def test_small_maps_are_convolved_by_one_product(size: tuple[int, int], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv, maps = torch.nn.Conv2d(4, 6, **options), torch.randn(5, 4, *size)
    expected = conv(maps)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = SmallMaps(conv, size)(maps.contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fewer_products_are_the_same_convolution(side: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    conv, maps = torch.nn.Conv2d(16, 24, 3, padding=1), torch.randn(5, 16, side, side)
    maps = maps.contiguous(memory_format=layout).requires_grad_(True)
    expected = conv(maps)
    found = Winograd(conv, side)(maps)
    assert not torch.equal(found, expected)  # other sums
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=1e-5)
    slopes = torch.randn_like(expected)
    own, theirs = (torch.autograd.grad(out, maps, slopes)[0] for out in (found, expected))
    torch.testing.assert_close(own, theirs, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("side", [2, 4])
def test_fewer_products_round_little_worse(side: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False)
    maps = torch.randn(64, 128, side, side)
    own, theirs = Winograd(conv, side)(maps), conv(maps)
    exact = conv.double()(maps.double())
    own_error, their_error = (float((one - exact).square().mean().sqrt()) for one in (own, theirs))
    assert own_error < 8 * their_error


@pytest.fixture
def eight_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow layers are multiplied as wide ones are, in less time."""
    monkeypatch.setattr(products, "FEWEST_CHANNELS", 8)


@pytest.mark.usefixtures("eight_are_wide")
@pytest.mark.parametrize(("dtype", "multiplied"), [("float32", 1), ("bfloat16", 0)])
def test_fewer_products_are_for_float32_alone(dtype: str, multiplied: int) -> None:
    module, images = wide(8, padding=1), torch.rand(IMAGES, 1, 4, 4)
    classifier = fn.Classifier(module).eval().as_dtype(dtype)
    (first, *_) = executed_layers(classifier, images)
    way, site = Exact(classifier, images), first.site("conv")
    for graph in (way.split(site).rest, way.whole(site).graph, way.recorded):
        assert sum(isinstance(one, Winograd) for one in graph.modules()) == multiplied


@pytest.mark.usefixtures("eight_are_wide")
@pytest.mark.parametrize(
    ("channels", "side", "options", "multiplied"),
    [
        (8, 4, {"padding": 1}, 1),
        (8, 2, {"padding": 1}, 1),
        (8, 4, {"padding": 1, "bias": False}, 0),
        (8, 4, {"padding": 1, "stride": 2}, 0),
        (8, 4, {"padding": 1, "groups": 2}, 0),
        (8, 4, {"padding": 2, "dilation": 2}, 0),
        (8, 4, {"padding": 1, "padding_mode": "circular"}, 0),
        (8, 3, {"padding": 1}, 0),
        (4, 4, {"padding": 1}, 0),
    ],
)
def test_wide_layers_of_small_maps_take_fewer_products(
    channels: int, side: int, options: dict[str, Any], multiplied: int
) -> None:
    classifier = fn.Classifier(wide(channels, **options), mean=[0.4], std=[0.3])
    images = torch.rand(IMAGES, 1, side, side)
    assert_exact(classifier, images)
    (first, *_) = executed_layers(classifier, images)
    rest = Exact(classifier, images).split(first.site("conv")).rest
    assert sum(isinstance(one, Winograd) for one in rest.modules()) == multiplied


def wide(channels: int, **options: Any) -> torch.nn.Sequential:
    """A convolution between so many channels, which is neither the first nor the last layer."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.Conv2d(4, channels, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(channels, channels, 3, **options),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(channels, 3),
    )


@pytest.mark.usefixtures("eight_are_wide")
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("channels", "side"), [(8, 4), (8, 2), (4, 2)])
def test_a_convolution_that_is_called_twice_is_multiplied_twice(norm: bool, channels: int, side: int) -> None:
    module = wide(channels, padding=1)
    again = [module[3], torch.nn.BatchNorm2d(channels) if norm else torch.nn.Identity(), module[4]]
    classifier = fn.Classifier(torch.nn.Sequential(*module[:3], *again, *again, *module[5:])).eval()
    images = torch.rand(IMAGES, 1, side, side)
    assert_exact(classifier, images)
    (first, *_) = executed_layers(classifier, images)
    called = called_in(Exact(classifier, images).split(first.site("conv")).rest)
    assert sum(issubclass(one, Winograd | SmallMaps) for one in called) == 2


def hooked_after(layer: torch.nn.Module) -> None:
    layer.register_forward_hook(lambda _, __, output: output * 2)


def hooked_before(layer: torch.nn.Module) -> None:
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))


def changed(layer: torch.nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda maps: forward(maps) * 2


@pytest.mark.usefixtures("eight_are_wide")
@pytest.mark.parametrize("disturb", [hooked_after, hooked_before, changed])
@pytest.mark.parametrize("place", [1, 2, 3, 7])
def test_what_is_done_around_a_layer_is_not_lost(
    disturb: Callable[[torch.nn.Module], None], place: int
) -> None:
    module = wide(8, padding=1)
    disturb(module[place])
    assert_exact(fn.Classifier(module).eval(), torch.rand(IMAGES, 1, 4, 4))


@pytest.mark.parametrize("size", [(8, 8), (7, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize("stride", [(2, 2), (1, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_strided_pixels_are_multiplied_as_they_are_convolved(
    size: tuple[int, int], stride: tuple[int, int], layout: torch.memory_format, bias: bool
) -> None:
    torch.manual_seed(0)
    conv, maps = torch.nn.Conv2d(4, 6, 1, stride=stride, bias=bias), torch.randn(5, 4, *size)
    maps = maps.contiguous(memory_format=layout).requires_grad_(True)
    expected = conv(maps)
    with torch.no_grad():
        torch.testing.assert_close(StridedPixels(conv)(maps), expected, atol=1e-6, rtol=1e-5)
    slopes = torch.randn_like(expected)
    (own,), (theirs,) = (
        torch.autograd.grad(out, maps, slopes) for out in (StridedPixels(conv)(maps), expected)
    )
    torch.testing.assert_close(own, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "multiplied"),
    [
        ({"stride": 2}, 1),
        ({"stride": 1}, 0),
        ({"stride": 2, "groups": 4}, 0),
        ({"stride": 2, "padding": 1}, 0),
        ({"stride": 2, "padding": "valid"}, 0),
    ],
)
def test_a_shortcut_with_a_stride_is_multiplied(options: dict[str, Any], multiplied: int) -> None:
    torch.manual_seed(0)
    classifier, images = fn.Classifier(Shortcut(options)).eval(), torch.rand(IMAGES, 2, 9, 9)
    assert_exact(classifier, images)
    (first, *_) = executed_layers(classifier, images)
    rest = Exact(classifier, images).split(first.site("conv")).rest
    assert sum(isinstance(one, StridedPixels) for one in rest.modules()) == multiplied


@pytest.mark.parametrize(
    ("padding", "groups", "multiplied"), [("same", 1, 0), (1, 4, 0), (1, 1, 0), ("valid", 1, 0), (0, 1, 1)]
)
def test_convolutions_with_groups_worded_paddings_or_zeros_are_left_as_they_are(
    padding: str | int, groups: int, multiplied: int
) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.Conv2d(4, 4, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 8, 3, padding=padding, groups=groups),
        torch.nn.Flatten(),
        torch.nn.Linear(8 if padding in (0, "valid") else 72, 3),
    )
    classifier, images = fn.Classifier(module, mean=[0.4], std=[0.3]), torch.rand(IMAGES, 1, 3, 3)
    assert_exact(classifier, images)
    (first, *_) = executed_layers(classifier, images)
    rest = Exact(classifier, images).split(first.site("conv")).rest
    assert sum(isinstance(one, SmallMaps) for one in rest.modules()) == multiplied


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (2, 3)])
def test_maps_are_halved_as_torch_pools_them(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(5, 4, *size)
    maps[0, 0, 0, 1], maps[1, 2, 1, 0], maps[2] = torch.nan, torch.inf, -torch.inf
    for layout in (torch.contiguous_format, torch.channels_last):
        found = HalvedMaps()(maps.contiguous(memory_format=layout))
        torch.testing.assert_close(found, functional.max_pool2d(maps, 2), atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (2, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_of_equal_pixels_the_same_one_gets_the_slope(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    maps = torch.randint(3, (40, 4, *size)).float().contiguous(memory_format=layout).requires_grad_(True)
    found, expected = HalvedMaps()(maps), functional.max_pool2d(maps, 2)
    slopes = torch.randn_like(expected)
    (own,), (theirs,) = (torch.autograd.grad(one, maps, slopes) for one in (found, expected))
    assert torch.equal(found, expected)
    assert torch.equal(own, theirs)


class Pooled(torch.nn.Module):
    """Three convolutions, of which the last one's maps are rectified and pooled."""

    def __init__(
        self, pool: Callable[[torch.Tensor], torch.Tensor], read: str = "once", **options: Any
    ) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1)
        self.third = torch.nn.Conv2d(4, 6, **{"kernel_size": 3, "padding": 1} | options)
        self.relu, self.pool, self.read = torch.nn.ReLU(inplace=True), pool, read
        self.linear = torch.nn.LazyLinear(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.third(functional.relu(self.second(functional.relu(self.first(images)))))
        active = self.relu(maps)
        logits: torch.Tensor = self.linear(self.pool(active).flatten(1))
        again = {"once": None, "twice": active, "before, too": maps}[self.read]
        return logits if again is None else logits + again.mean(dim=(1, 2, 3)).unsqueeze(1)


def splits_of(module: torch.nn.Module, images: torch.Tensor) -> list[Split]:
    """At the first and the second layer of a network that is swept exactly."""
    module(images)
    classifier = fn.Classifier(module, mean=[0.4], std=[0.3])
    assert_exact(classifier, images)
    way = Exact(classifier, images)
    return [way.split(layer.site("conv")) for layer in executed_layers(classifier, images)[:2]]


def called_in(rest: torch.fx.GraphModule) -> list[type[torch.nn.Module]]:
    """The classes of the modules that a graph calls, in order."""
    modules = dict(rest.named_modules(remove_duplicate=False))
    return [type(modules[str(node.target)]) for node in rest.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize(
    ("pool", "halved"),
    [
        (torch.nn.MaxPool2d(2), True),
        (torch.nn.MaxPool2d((2, 2), stride=(2, 2)), True),
        (lambda maps: functional.max_pool2d(maps, 2), True),
        (lambda maps: functional.max_pool2d(maps, (2, 2), stride=2), True),
        (torch.nn.MaxPool2d(2, ceil_mode=True), False),
        (torch.nn.MaxPool2d(2, padding=1), False),
        (torch.nn.MaxPool2d(2, stride=1), False),
        (torch.nn.MaxPool2d(2, dilation=2), False),
        (torch.nn.MaxPool2d((2, 3), stride=2), False),
        (lambda maps: functional.max_pool2d(maps, 3, stride=2, padding=1), False),
        (lambda maps: functional.avg_pool2d(maps, 2), False),
    ],
)
def test_only_pooling_of_two_by_two_is_done_as_maxima(
    pool: Callable[[torch.Tensor], torch.Tensor], halved: bool
) -> None:
    torch.manual_seed(0)
    far, near = splits_of(Pooled(pool), torch.rand(IMAGES, 1, 7, 7))
    assert (HalvedMaps in called_in(far.rest)) == halved
    assert not far.halved
    assert HalvedMaps not in called_in(near.rest)  # the mixing layer does it
    assert bool(near.halved) == halved


@pytest.mark.parametrize("read", ["once", "twice", "before, too"])
def test_a_rectification_that_only_pooling_reads_follows_it(read: str) -> None:
    torch.manual_seed(0)
    _, near = splits_of(Pooled(torch.nn.MaxPool2d(2), read), torch.rand(IMAGES, 1, 7, 7))
    assert called_in(near.rest)[:2] == [torch.nn.ReLU, QuickLinear if read == "once" else HalvedMaps]
    assert bool(near.halved) == (read == "once")


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 2},
        {"stride": (1, 2), "kernel_size": (2, 3)},
        {"dilation": 2, "padding": 2},
        {"padding_mode": "circular"},
        {"padding": 0, "bias": False},
    ],
    ids=str,
)
def test_the_mixing_layer_pools_at_once(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    (_, near) = splits_of(Pooled(torch.nn.MaxPool2d(2), **options), torch.rand(IMAGES, 1, 9, 8))
    assert near.halved


def test_chunks_share_no_memory_where_the_mixing_layer_is_the_last() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 3)
    )
    classifier, images = fn.Classifier(module).eval(), torch.rand(600, 1, 4, 4)
    (layer, _) = executed_layers(classifier, images[:4])
    site, pairs = layer.site("conv"), Pairs.of(list(range(8)), torch.arange(600))
    way = Exact(classifier, images[:4])
    assert 2 * way.split(site).rows < len(pairs)
    found = way.walk(images, [site]).logits(site, drop(0.0), pairs)
    expected = Reference(classifier).walk(images, [site]).logits(site, drop(0.0), pairs)
    torch.testing.assert_close(found, expected)


def dead_and_alive() -> tuple[fn.Classifier, torch.Tensor]:
    """Four channels, of which the second never gets through its rectification."""
    torch.manual_seed(0)
    first = torch.nn.Conv2d(1, 4, 3, padding=1)
    first.load_state_dict({"weight": torch.rand(4, 1, 3, 3), "bias": torch.tensor([0.0, -9.0, 0.0, 0.0])})
    rest = torch.nn.Conv2d(4, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 3)
    module = torch.nn.Sequential(first, torch.nn.ReLU(), *rest)
    return fn.Classifier(module).eval(), torch.rand(IMAGES, 1, 6, 6)


@pytest.mark.parametrize("images_asked", [IMAGES, IMAGES - 1])
def test_pairs_in_which_nothing_moves_have_the_networks_own_logits(images_asked: int) -> None:
    classifier, images = dead_and_alive()
    site = executed_layers(classifier, images)[0].site("conv")
    pairs = Pairs.of([0, 1, 2, 3], torch.arange(images_asked))
    walk, rows = Exact(classifier, images).walk(images, [site]), 0
    kept, chunks = walk.kept(site), walk._chunks

    def counted(asked: Pairs, *others: Any) -> Iterator[tuple[Pairs, Pairs]]:
        nonlocal rows
        rows += len(asked)
        return chunks(asked, *others)

    walk._chunks = counted  # type: ignore[assignment, method-assign]
    found = walk.logits(site, drop(0.0), pairs)
    # fewer than there are images would not pay for a pass of its own
    assert rows == (3 * IMAGES if images_asked == IMAGES else len(pairs))
    assert torch.equal(found[pairs.channels == 1], kept[:images_asked])
    plain = Reference(classifier).walk(images, [site])
    torch.testing.assert_close(found, plain.logits(site, drop(0.0), pairs))
    torch.testing.assert_close(kept, classifier(images))


class Twice(torch.nn.Module):
    """A layer that is called twice; its first channel gets through the second time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(2, 2, 1), torch.nn.Linear(2, 3)
        weight = torch.tensor([[0.0, 0.5], [0.0, 5.0]]).view(2, 2, 1, 1)
        self.conv.load_state_dict({"weight": weight, "bias": torch.tensor([-1.0, 3.0])})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.conv(functional.relu(self.conv(images))))
        logits: torch.Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits


def test_what_is_replaced_again_later_may_move_there() -> None:
    torch.manual_seed(0)
    classifier, images = fn.Classifier(Twice()).eval(), torch.rand(IMAGES, 2, 4, 4)
    site = executed_layers(classifier, images)[0].site("conv")
    walk, pairs = Exact(classifier, images).walk(images, [site]), Pairs.of([0], torch.arange(IMAGES))
    kept = walk.kept(site)
    found = walk.logits(site, drop(0.0), pairs)
    torch.testing.assert_close(
        found, Reference(classifier).walk(images, [site]).logits(site, drop(0.0), pairs)
    )
    assert (found != kept).any(dim=1).all()


@pytest.mark.parametrize(
    ("rows", "images", "expected"),
    [
        (128, 256, 128),
        (128, 250, 125),
        (512, 250, 500),
        (64, 40, 40),
        (16, 33, 11),
        (16, 50, 10),
        (100, 1, 100),
        (8, 9, 8),
        (64, 251, 64),
    ],
)
def test_a_chunk_ends_where_a_channels_images_do(rows: int, images: int, expected: int) -> None:
    assert whole_runs(rows, images) == expected


@pytest.mark.parametrize(
    ("pairs", "rows", "expected"),
    [(1, 128, 8), (8, 128, 8), (9, 128, 16), (128, 128, 128), (127, 128, 128), (5, 64, 8), (5, 60, 60)],
)
def test_a_last_chunk_has_few_rows_more_than_pairs(pairs: int, rows: int, expected: int) -> None:
    assert tail_rows(pairs, rows) == expected
