"""The reference sweep against edited copies of the network, and against captum."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerFeatureAblation
from edited import without_channels
from torch import nn

import fragile_neurons as fn
from fragile_neurons.analysis.selection import probed_layers
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.classifier import evaluating
from fragile_neurons.interventions import drop, intervening, record_maps
from fragile_neurons.losses import margins
from fragile_neurons.neurons import Layer, Site, executed_layers
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.reference import Reference
from fragile_neurons.sweeps.sweep import Sweep

EPSILONS = [Fraction(1, 50), Fraction(1, 20)]


def layer_named(classifier: fn.Classifier, data: fn.ImageData, name: str) -> Layer:
    return next(layer for layer in probed_layers(classifier, data)[0] if layer.name == name)


def state(classifier: fn.Classifier) -> list[object]:
    """Everything of a network that an analysis could leave changed."""
    return [
        classifier.sha256(),
        [module.training for module in classifier.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in classifier.modules()],
        [(parameter.requires_grad, parameter.grad is None) for parameter in classifier.parameters()],
    ]


@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_dropping_is_zeroing_kernel_and_bias(
    name: str, small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    images, labels = small_data[:]
    layer = layer_named(small_classifier, small_data, name)
    channels = list(range(layer.channels))
    site = layer.site("conv")
    with evaluating(small_classifier):
        sweep = Sweep(Reference(small_classifier), small_classifier, [site], images, labels, EPSILONS)
        swept = sweep.drop(site, channels, [0.0] * len(channels), adaptive=True)
    whole_attack = fgsm(small_classifier, images, labels, EPSILONS)
    with torch.no_grad():
        before = small_classifier(images)
    for channel in channels:
        edited = without_channels(small_classifier, name, [channel])
        anew = fgsm(edited, images, labels, EPSILONS)
        with torch.no_grad():
            clean = edited(images)
            transfer = torch.stack([edited(one) for one in whole_attack])
            adaptive = torch.stack([edited(one) for one in anew])
        expected = {
            "clean_margin": margins(clean, labels),
            "clean_move": (clean - before).abs().amax(1),
            "transfer_margin": margins(transfer, labels),
            "adv_margin": margins(adaptive, labels),
            "clean_right": clean.argmax(1) == labels,
            "transfer_right": transfer.argmax(2) == labels,
            "adv_right": adaptive.argmax(2) == labels,
        }
        for key, value in expected.items():
            np.testing.assert_allclose(
                getattr(swept, key)[..., channel], value.numpy(), atol=1e-5, err_msg=key
            )


@pytest.mark.parametrize(("site", "follower"), [("conv", "conv1"), ("norm", "norm1"), ("act", "relu1")])
def test_sites_are_where_they_say(
    site: str, follower: str, small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    """Rebuilt with slices of the Sequential: everything up to the follower, edit, everything after."""
    images, _ = small_data[:]
    layer = layer_named(small_classifier, small_data, "conv1")
    module = small_classifier.module
    assert isinstance(module, nn.Sequential)
    position = [name for name, _ in module.named_children()].index(follower) + 1
    with torch.no_grad():
        maps = module[:position]((images - 0.4) / 0.3).clone()
        (recorded,) = record_maps(small_classifier, [layer.site(site)], images)
        torch.testing.assert_close(recorded, maps.flatten(2))
        maps[:, 2] = 0.25
        expected = module[position:](maps)
        with intervening(small_classifier, layer.site(site), [2], drop(0.25)):
            found = small_classifier(images)
    torch.testing.assert_close(found, expected)


def test_dropping_equals_captums_layer_feature_ablation() -> None:
    classifier, data = fn.load_model("mnist-cnn"), fn.load_data("mnist", limit=20)
    images, labels = data[:]
    layer = layer_named(classifier, data, "conv1")
    mask = torch.arange(32).view(1, 32, 1, 1)
    ablation = LayerFeatureAblation(classifier, classifier.module.get_submodule("conv1"))
    with torch.no_grad():
        theirs = ablation.attribute(images, target=labels, layer_mask=mask, layer_baselines=0)
        before = classifier(images).gather(1, labels[:, None])[:, 0]
        for channel in range(0, 32, 5):
            with intervening(classifier, layer.site("conv"), [channel], drop(0.0)):
                after = classifier(images).gather(1, labels[:, None])[:, 0]
            torch.testing.assert_close(before - after, theirs[:, channel, 0, 0], atol=1e-4, rtol=1e-4)


def test_a_shared_module_is_dropped_at_every_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.fc = nn.Linear(2 * 36, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(torch.relu(self.conv(torch.relu(self.conv(images)))).flatten(1))
            return logits

    torch.manual_seed(0)
    classifier = fn.Classifier(Shared())
    images = torch.rand(5, 2, 6, 6)
    site = Site("conv", "conv", "conv", None, 1, outputs=2)
    edited = without_channels(classifier, "conv", [1])
    with torch.no_grad(), intervening(classifier, site, [1], drop(0.0)):
        torch.testing.assert_close(classifier(images), edited(images))
    (maps,) = record_maps(classifier, [site], images)
    assert maps.shape == (5, 2, 72)


def test_the_nth_call_of_a_reused_activation_is_met_alone() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3)
            self.relu = nn.ReLU(inplace=True)
            self.fc = nn.Linear(3 * 16, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(self.relu(self.conv2(self.relu(self.conv1(images)))).flatten(1))
            return logits

    torch.manual_seed(0)
    classifier = fn.Classifier(Reused())
    data = fn.ImageData(
        np.random.default_rng(0).random((6, 1, 8, 8), np.float32), np.arange(6) % 3, ("a", "b", "c")
    )
    images, _ = data[:]
    module = classifier.module
    with torch.no_grad():
        first = torch.relu(module.conv1(images))  # type: ignore[operator]
        second = torch.relu(module.conv2(first))  # type: ignore[operator]
        second[:, 0] = 0
        expected = module.fc(second.flatten(1))  # type: ignore[operator]
        with intervening(classifier, layer_named(classifier, data, "conv2").site("act"), [0], drop(0.0)):
            torch.testing.assert_close(classifier(images), expected)
            # every pass begins counting anew
            torch.testing.assert_close(classifier(images), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_as_before_after_every_analysis(
    training: bool, small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    small_classifier.train(training)
    before = state(small_classifier)
    fn.dropout(small_classifier, small_data, layer="all", epsilons=[0.05])
    fn.targeting(small_classifier, small_data, layer="all", site="act", epsilons=[0.05])
    fn.robust_accuracy(small_classifier, small_data, attack="pgd", epsilons=[0.05])
    fn.correlate(small_classifier, small_data, epsilons=[0.05])
    assert state(small_classifier) == before


def test_the_network_is_as_before_after_an_exception_in_the_middle(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    small_classifier.train()
    before = state(small_classifier)
    images, _ = small_data[:]
    layer = layer_named(small_classifier, small_data, "conv1")

    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        evaluating(small_classifier),
        intervening(small_classifier, layer.site("conv"), [0], fail),
    ):
        small_classifier(images)
    assert state(small_classifier) == before


class ByName(nn.Module):
    """Hands inputs over by name, and keeps where its maxima were."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.two = nn.MaxPool2d(2, return_indices=True), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps, _ = self.pool(self.norm(input=self.one(input=images)).relu())
        found: torch.Tensor = self.fc(input=self.two(input=maps).flatten(1))
        return found


def test_inputs_handed_over_by_name_are_swept_exactly(small_data: fn.ImageData) -> None:
    torch.manual_seed(0)
    classifier = fn.Classifier(ByName())
    options: dict[str, Any] = {"layer": "all", "epsilons": ["0.1"], "mode": "transfer"}
    images, _ = small_data[:8]
    sites = [layer.site("conv") for layer in executed_layers(classifier, images) if layer.kind == "Conv2d"]
    assert choose_way(classifier, sites, images, "auto").name == "exact"
    fast, slow = (
        fn.dropout(classifier, small_data, sweep=sweep, **options) for sweep in ("exact", "reference")
    )
    np.testing.assert_allclose(fast.margin_drop, slow.margin_drop, atol=1e-5)
    np.testing.assert_array_equal(fast.clean.drop, slow.clean.drop)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("exact.split", IndexError("tuple index out of range")),
        ("exact.leave_whole", fn.InputError("no finite gradient", given="NaN", allowed="numbers", fix="it")),
    ],
)
def test_whatever_fails_as_a_graph_is_swept_by_hooks(
    step: str,
    error: Exception,
    small_classifier: fn.Classifier,
    small_data: fn.ImageData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"fragile_neurons.sweeps.{step}", fail)
    images, _ = small_data[:8]
    (layer, *_) = executed_layers(small_classifier, images)
    found = choose_way(small_classifier, [layer.site("conv")], images, "auto")
    assert found.name == "reference"
    assert type(error).__name__ in found.reason
    with pytest.raises(fn.InputError, match="the exact sweep cannot be had"):
        choose_way(small_classifier, [layer.site("conv")], images, "exact")


class Gated(nn.Module):
    """Its gate is computed without a gradient, of which a graph knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.gate, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.LazyLinear(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(4 * self.gate(images))
        found: torch.Tensor = self.fc((self.one(images) * gate).flatten(1))
        return found


def test_a_network_whose_gradients_a_graph_does_not_have_is_swept_by_hooks(small_data: fn.ImageData) -> None:
    torch.manual_seed(0)
    images, _ = small_data[:8]
    module = Gated()
    module(images)
    classifier = fn.Classifier(module)
    sites = [layer.site("conv") for layer in executed_layers(classifier, images) if layer.kind == "Conv2d"]
    found = choose_way(classifier, sites, images, "auto")
    assert found.name == "reference"
    assert "other gradients" in found.reason


class Rooted(nn.Module):
    """Without its first channel it takes the root of zero, of which the slope is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc = nn.Conv2d(1, 4, 3), nn.LazyLinear(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.one(images)
        product = maps[:, :1] * maps[:, 1:2]
        found: torch.Tensor = self.fc(maps.flatten(1)) + product.abs().sum(dim=(2, 3)).sqrt()
        return found


def test_a_network_that_cannot_be_attacked_without_a_neuron_is_swept_all_the_same(
    small_data: fn.ImageData,
) -> None:
    torch.manual_seed(0)
    images, _ = small_data[:8]
    module = Rooted()
    module(images)
    classifier = fn.Classifier(module)
    (layer, *_) = executed_layers(classifier, images)
    assert choose_way(classifier, [layer.site("conv")], images, "auto").name == "exact"
    assert fn.dropout(classifier, small_data, epsilons=[]).clean.drop.shape == (4,)
    with pytest.raises(fn.InputError, match="not finite"):
        fn.dropout(classifier, small_data, epsilons=["0.1"])
