"""Patching against a network made by hand, a second derivation, and what it must restore."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.classifier import evaluating
from fragile_neurons.interventions import patch, put
from fragile_neurons.neurons import executed_layers
from fragile_neurons.stats import wilson
from fragile_neurons.sweeps.choice import choose_way

EPSILON = Fraction(1, 10)


def two_neurons() -> fn.Classifier:
    """Pixels a, b; neuron 0 is 10 a, neuron 1 is b; the margin of class 0 is 10 a + b - 5.5.

    FGSM of 0.1 takes 1 from neuron 0 and 0.1 from neuron 1: whatever it breaks, neuron 0 carries.
    """
    conv, linear = nn.Conv2d(2, 2, 1, bias=False), nn.Linear(2, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1))
        linear.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        linear.bias.copy_(torch.tensor([-5.5, 0.0]))
    return fn.Classifier(nn.Sequential(conv, nn.Flatten(), linear))


@pytest.mark.parametrize("sweep", ["exact", "reference"])
def test_the_neuron_that_carries_the_attack_by_hand(sweep: str) -> None:
    # margins 0.5, 1.05, 1.5, -1.5: the first two fall to -0.6 and -0.05, the third stays, the last is wrong
    pixels = torch.tensor([[0.5, 1.0], [0.6, 0.55], [0.65, 0.5], [0.3, 1.0]])
    data = fn.ImageData(pixels.view(4, 2, 1, 1).numpy(), np.zeros(4, np.int64), ("a", "b"))
    found = fn.patching(two_neurons(), data, epsilons=["0", "0.1"], sweep=sweep)
    assert (found.fooled.tolist(), found.right.tolist()) == ([0, 2], [0, 3])
    # clean neuron 0: +0.4 and +0.95, both rescued; clean neuron 1: -0.5 and +0.05, the second
    np.testing.assert_array_equal(found.rescue[1], [1.0, 0.5])
    # adversarial neuron 0: -0.5 breaks the first alone, 0.05 and 0.5 do not; neuron 1 breaks none
    np.testing.assert_allclose(found.inject[1], [1 / 3, 0.0])
    assert np.isnan(found.rescue[0]).all()
    assert np.isnan(found.inject[0]).all()
    assert (found.rescue_low[1, 1], found.rescue_high[1, 1]) == wilson(1, 2)


@pytest.mark.parametrize("sweep", ["exact", "reference"])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_patching_is_setting_one_channel_in_the_other_pass(
    layer: str, sweep: str, small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    """Rebuilt with slices of the Sequential."""
    found = fn.patching(
        small_classifier, small_data, layer=layer, epsilons=["0.1"], sweep=sweep, batch_size=16
    )
    images, labels = small_data[:]
    module = small_classifier.module
    assert isinstance(module, nn.Sequential)
    cut = [name for name, _ in module.named_children()].index(layer) + 1
    with torch.no_grad():
        attacked = fgsm(small_classifier, images, labels, [EPSILON])[0]
        clean, moved = (module[:cut]((one - 0.4) / 0.3) for one in (images, attacked))
        right = module[cut:](clean.clone()).argmax(1) == labels
        fooled = right & (module[cut:](moved.clone()).argmax(1) != labels)
        assert 0 < fooled.sum() < right.sum()
        for channel in range(clean.shape[1]):
            rescued, broken = moved.clone(), clean.clone()
            rescued[:, channel], broken[:, channel] = clean[:, channel], moved[:, channel]
            again = (module[cut:](rescued).argmax(1) == labels)[fooled]
            wrong = (module[cut:](broken).argmax(1) != labels)[right]
            assert found.rescue[0, channel] == pytest.approx(again.float().mean().item())
            assert found.inject[0, channel] == pytest.approx(wrong.float().mean().item())


def test_patching_every_channel_at_once_restores_every_clean_prediction(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    images, labels = small_data[:]
    layer = executed_layers(small_classifier, images)[0]
    attacked = fgsm(small_classifier, images, labels, [EPSILON])[0]
    module = small_classifier.module
    assert isinstance(module, nn.Sequential)
    with evaluating(small_classifier), torch.no_grad():
        way = choose_way(small_classifier, [layer.site("conv")], images, "exact").way
        clean = way.walk(images, [layer.site("conv")]).maps(layer.site("conv"))
        maps = way.walk(attacked, [layer.site("conv")]).maps(layer.site("conv"))
        rows = torch.arange(len(images))
        for channel in range(layer.channels):
            maps = put(maps, 1, torch.full_like(rows, channel), rows, patch(clean))
        torch.testing.assert_close(module[1:](maps.contiguous()), small_classifier(images))


def test_a_layer_that_is_called_twice_has_no_patches() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.fc = nn.Linear(2 * 36, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(torch.relu(self.conv(torch.relu(self.conv(images)))).flatten(1))
            return logits

    torch.manual_seed(0)
    data = fn.ImageData(
        np.random.default_rng(0).random((9, 2, 6, 6), np.float32), np.arange(9) % 3, ("a", "b", "c")
    )
    found = fn.patching(fn.Classifier(Shared()), data, epsilons=["0.1"])
    assert np.isnan(found.rescue).all()
    assert np.isnan(found.inject).all()
