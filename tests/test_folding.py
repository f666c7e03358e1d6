"""Gains in weights against the same gains in hooks, over the wirings that networks have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

import fragile_neurons as fn
from fragile_neurons.analysis.selection import Selection
from fragile_neurons.folding import fold, holding
from fragile_neurons.hardening.gains import Gains
from fragile_neurons.hardening.premises import common_site
from fragile_neurons.interventions import scaling
from fragile_neurons.neurons import executed_layers, select_layers

SIZES = {"vgg11_bn": 32, "densenet121": 64, "squeezenet1_1": 64}


def random_gains(classifier: fn.Classifier, images: torch.Tensor, site: str, *, shift: bool = True) -> Gains:
    """Gains from 0.5 to 2 for every convolution, and shifts where a weight can hold them."""
    generator = np.random.default_rng(0)
    layers = select_layers(classifier, executed_layers(classifier, images), "all")
    sites = tuple(layer.site(site) for layer in layers)
    modules = [classifier.module.get_submodule(one.module) for one in sites]
    return Gains(
        sites,
        tuple(np.exp(generator.uniform(-0.7, 0.7, layer.channels)) for layer in layers),
        tuple(
            generator.normal(0, 0.1, layer.channels) * (shift and module.bias is not None)
            for layer, module in zip(layers, modules, strict=True)
        ),
    )


def auto(classifier: fn.Classifier, images: torch.Tensor) -> str:
    """The site that `auto` takes for all convolutions."""
    layers = select_layers(classifier, executed_layers(classifier, images), "all")
    return common_site(classifier, Selection(layers, (), "conv", images, ()))


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def build(name: str) -> tuple[fn.Classifier, torch.Tensor]:
    torch.manual_seed(0)
    if name in ("mnist-cnn", "cifar10-resnet20"):
        channels, size = (1, 28) if name == "mnist-cnn" else (3, 32)
        return fn.load_model(name), torch.rand(4, channels, size, size)
    module = torchvision.models.get_model(name, weights=None, num_classes=10)
    for one in module.modules():  # statistics that a norm has in life
        if isinstance(one, nn.BatchNorm2d):
            one.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            one.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            one.bias.data.normal_(0, 0.1)
    size = SIZES.get(name, 32)
    return fn.Classifier(module).eval(), torch.rand(4, 3, size, size)


@pytest.mark.parametrize("site", ["conv", "auto"])
@pytest.mark.parametrize(
    "name",
    [
        "mnist-cnn",
        "cifar10-resnet20",
        "resnet18",
        "squeezenet1_1",
        "shufflenet_v2_x1_0",
        "mobilenet_v3_small",
        "densenet121",
        "vgg11_bn",
    ],
)
def test_folded_gains_are_hooked_gains(name: str, site: str) -> None:
    classifier, images = build(name)
    before = {key: one.clone() for key, one in classifier.module.state_dict().items()}
    gains = random_gains(classifier, images, auto(classifier, images) if site == "auto" else site)
    folded = fold(classifier, gains.changes, images)
    with torch.no_grad():
        with scaling(classifier, gains.changes):
            hooked = classifier(images)
        original = classifier(images)
        assert relative_difference(folded(images), hooked) < 1e-4
        assert relative_difference(original, hooked) > 1e-3  # the gains do something
    after = classifier.module.state_dict()
    assert list(folded.module.state_dict()) == list(before)
    assert all(torch.equal(after[key], one) for key, one in before.items())


def test_scaling_is_arithmetic_on_the_maps_of_one_layer() -> None:
    torch.manual_seed(0)
    conv, images = nn.Conv2d(1, 2, 1), torch.rand(3, 1, 2, 2)
    classifier = fn.Classifier(nn.Sequential(conv, nn.Flatten(), nn.Linear(8, 2))).eval()
    (layer,) = select_layers(classifier, executed_layers(classifier, images), "all")
    factors, shifts = torch.tensor([2.0, 0.5]), torch.tensor([0.0, -1.0])
    maps = conv(images)
    by_hand = classifier.module[2](torch.stack([2 * maps[:, 0], 0.5 * maps[:, 1] - 1], 1).flatten(1))  # type: ignore[index]
    with scaling(classifier, {layer.site("conv"): (factors, shifts)}):
        torch.testing.assert_close(classifier(images), by_hand)


class Twice(nn.Module):
    """One convolution called twice, which gains may scale: both calls have the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.conv(self.conv(images)).flatten(1))
        return out


class Standardised(nn.Conv2d):
    """A convolution that computes with other weights than it holds."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(images, weight, self.bias, padding=1)


class Borrowed(nn.Module):
    """The weights of a convolution, read by a second computation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(128, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.conv(images).flatten(1))
        return out + self.conv.weight.sum()


def tied() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten())
    module[1].weight = module[0].weight
    return module


@pytest.mark.parametrize(
    ("module", "channels", "said"),
    [
        (Standardised(1, 2, 3), 1, "forward pass of its own"),
        (parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), 1, "computed from others"),
        (parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)), 1, "computed from others"),
        (tied(), 2, "shares its weights"),
    ],
)
def test_what_cannot_hold_gains_is_refused_by_name(module: nn.Module, channels: int, said: str) -> None:
    images = torch.rand(4, channels, 8, 8)
    network = nn.Sequential(module, nn.Flatten(), nn.LazyLinear(2)).eval()
    network(images)
    classifier = fn.Classifier(network).eval()
    layers = executed_layers(classifier, images)
    gains = Gains.of_factors([layers[0].site("conv")], [np.full(layers[0].channels, 2.0)])
    with pytest.raises(fn.InputError, match=f"the weights of {layers[0].name}\n.*{said}"):
        fold(classifier, gains.changes, images)


def test_a_shift_without_a_bias_and_a_norm_without_a_scale_are_refused() -> None:
    images = torch.rand(4, 1, 8, 8)
    conv, norm = nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2, affine=False)
    classifier = fn.Classifier(nn.Sequential(conv, norm, nn.Flatten(), nn.Linear(72, 2))).eval()
    (layer,) = select_layers(classifier, executed_layers(classifier, images), "all")
    ones, shifts = np.ones(2), np.array([0.0, 0.1])
    with pytest.raises(fn.InputError, match="no bias to hold a shift"):
        fold(classifier, Gains((layer.site("conv"),), (ones,), (shifts,)).changes, images)
    with pytest.raises(fn.InputError, match="no scale"):
        fold(classifier, Gains.of_factors([layer.site("norm")], [ones]).changes, images)
    assert auto(classifier, images) == "conv"


def test_weights_that_something_else_reads_are_found_by_the_logits() -> None:
    classifier, images = fn.Classifier(Borrowed()).eval(), torch.rand(4, 1, 8, 8)
    (layer,) = select_layers(classifier, executed_layers(classifier, images), "all")
    gains = Gains.of_factors([layer.site("conv")], [np.array([2.0, 0.5])])
    with pytest.raises(fn.InputError, match=r"weights of conv\n.*something else"):
        fold(classifier, gains.changes, images)


def test_a_module_of_two_calls_takes_gains_at_both() -> None:
    torch.manual_seed(0)
    classifier, images = fn.Classifier(Twice()).eval(), torch.rand(4, 1, 8, 8)
    layers = executed_layers(classifier, images)
    gains = Gains.of_factors([layers[0].site("conv")], [np.array([2.0])])
    folded = fold(classifier, gains.changes, images)
    with torch.no_grad(), scaling(classifier, gains.changes):
        assert relative_difference(folded(images), classifier(images)) < 1e-5


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), 1e30])
def test_gains_that_are_no_gains_are_refused(value: float) -> None:
    classifier, images = build("mnist-cnn")
    site = executed_layers(classifier, images)[0].site("conv")
    factors = np.ones(32)
    factors[17] = value
    with pytest.raises(fn.InputError, match="gain of conv1:17"):
        Gains.of_factors([site], [factors])


@pytest.mark.parametrize("name", ["mnist-cnn", "cifar10-resnet20"])
def test_weights_hold_gains_as_maps_are_scaled_gradients_included(name: str) -> None:
    classifier, images = build(name)
    classifier, images = classifier.double(), images.double()  # or a ReLU may be on one side or the other
    before = {key: one.clone() for key, one in classifier.module.state_dict().items()}
    own = dict(classifier.module.named_parameters())
    gains = random_gains(classifier, images, auto(classifier, images))
    found = []
    for context in (holding, scaling):
        leaves = {
            site: (one.clone().requires_grad_(), two.clone().requires_grad_())
            for site, (one, two) in gains.changes.items()
        }
        with context(classifier, leaves):
            classifier(images).square().sum().backward()
        found.append([leaf.grad for pair in leaves.values() for leaf in pair])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))
    assert [one is own[key] for key, one in classifier.module.named_parameters()] == [True] * len(own)
    for key, one in classifier.module.state_dict().items():
        assert torch.equal(one, before[key])
    with pytest.raises(RuntimeError), holding(classifier, gains.changes):
        raise RuntimeError
    assert all(one is own[key] for key, one in classifier.module.named_parameters())


class Shared(nn.Module):
    """Two convolutions whose outputs one batch norm takes in turn: its scale would serve both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3)
        self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(48, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.norm(self.other(self.norm(self.one(images)))).flatten(1))
        return out


def test_a_batch_norm_of_two_layers_is_no_site_for_gains() -> None:
    assert auto(fn.Classifier(Shared()).eval(), torch.rand(4, 1, 8, 8)) == "conv"
