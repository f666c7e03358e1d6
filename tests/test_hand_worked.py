"""A two-layer linear network small enough to work every number out by hand.

Pixels (a, b); h0 = 3a - b, h1 = a + 2b; logits = (h0, h1). So the margin is 2a - 3b for label 0, its
negative for label 1, and FGSM moves (a, b) by epsilon * (-1, +1) for label 0, (+1, -1) for label 1.

          a    b    label   h0    h1    margin   FGSM 0.1     h0   h1   margin
    A     0.8  0.2    0     2.2   1.2    1.0     (0.7, 0.3)   1.8  1.3   0.5
    B     0.3  0.6    1     0.3   1.5    1.2     (0.4, 0.5)   0.7  1.4   0.7
    C     0.5  0.3    0     1.2   1.1    0.1     (0.4, 0.4)   0.8  1.2  -0.4   fooled
    D     0.9  0.05   1     2.65  1.0   -1.65    (1.0, 0.0)   3.0  1.0  -2.0   wrong already; b is clipped
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.seeds import numpy_generator

NOISE_DRAWS = 10


@pytest.fixture
def classifier() -> fn.Classifier:
    conv, fc = nn.Conv2d(1, 2, (1, 2), bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[3.0, -1.0], [1.0, 2.0]]).view(2, 1, 1, 2))
        fc.weight.copy_(torch.eye(2))
    return fn.Classifier(nn.Sequential(OrderedDict(conv=conv, flatten=nn.Flatten(), fc=fc)))


@pytest.fixture
def data() -> fn.ImageData:
    pixels = np.array([[0.8, 0.2], [0.3, 0.6], [0.5, 0.3], [0.9, 0.05]], np.float32)
    return fn.ImageData(pixels.reshape(4, 1, 1, 2), np.array([0, 1, 0, 1]), ("zero", "one"))


def test_accuracy(classifier: fn.Classifier, data: fn.ImageData) -> None:
    result = fn.robust_accuracy(classifier, data, epsilons=["0", "0.1"])
    assert result.right.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert [result.at(row).value for row in (0, 1)] == [0.75, 0.5]
    assert result.at(1, label=1).value == 0.5


def test_nodal_dropout(classifier: fn.Classifier, data: fn.ImageData) -> None:
    """Without h0 the network says 1 to everything, without h1 it says 0.

    Attacked anew without h0, label 0 pushes h1 up and label 1 pushes it down: the margins become
    -1.5 (A), 1.2 (B), -1.4 (C), 0.8 (D, its b clipped), against 0.5, 0.7, -0.4, -2.0 of the whole.
    """
    result = fn.dropout(classifier, data, epsilons=["0.1"])
    assert [str(neuron) for neuron in result.neurons] == ["conv:0", "conv:1"]
    assert result.clean.lost.tolist() == [2, 1]
    assert result.clean.gained.tolist() == [1, 0]
    np.testing.assert_allclose(result.clean.drop, [0.25, 0.25])
    np.testing.assert_allclose(
        result.margin_drop, [(2.2 - 0.3 + 1.2 - 2.65) / 4, (-1.2 + 1.5 - 1.1 + 1) / 4], atol=1e-6
    )
    assert (result.adv[0].lost[0], result.adv[0].gained[0]) == (1, 1)
    np.testing.assert_allclose(result.adv_margin_drop[0, 0], (-1.2 - (-1.5 + 1.2 - 1.4 + 0.8)) / 4, atol=1e-6)
    np.testing.assert_allclose(result.gap_drop[0, 0], 0.25)
    # on the images made for the whole network: without h0, A and C are wrong, B and D right
    assert result.transfer_drop[0, 0] == 0.0
    assert result.adv[0].verdict.tolist() == ["undecided", "undecided"]  # fewer than 30 right and wrong


def test_transfer_mode_gives_no_verdict(classifier: fn.Classifier, data: fn.ImageData) -> None:
    """Without h1 everything is called 0: A stays right, B is lost, C is gained, D stays wrong."""
    result = fn.dropout(classifier, data, epsilons=["0.1"], mode="transfer")
    assert (result.adv[0].lost[1], result.adv[0].gained[1]) == (1, 1)
    assert result.transfer_drop[0, 1] == 0.0
    # margins on the same images: 1.8, -0.7, 0.8, -3.0
    np.testing.assert_allclose(result.adv_margin_drop[0, 1], (-1.2 - (1.8 - 0.7 + 0.8 - 3)) / 4, atol=1e-6)
    row = result.to_table().to_pylist()[1]
    assert (row["mode"], row["adv_verdict"], row["adv_q"], row["gap_drop"]) == ("transfer", None, None, None)


def test_mean_replacement(classifier: fn.Classifier, data: fn.ImageData) -> None:
    """h0 at its mean 1.5875 everywhere: A stays right (h1 = 1.2), B is lost (1.5), C right, D wrong."""
    result = fn.dropout(classifier, data, replace="mean")
    assert (result.clean.lost[0], result.clean.gained[0]) == (1, 0)
    np.testing.assert_allclose(
        result.margin_drop[0],
        np.mean([2.2 - 1.5875, 1.5875 - 0.3, 1.2 - 1.5875, 1.5875 - 2.65]),
        atol=1e-6,
    )


def test_targeting(classifier: fn.Classifier, data: fn.ImageData) -> None:
    """On each right image FGSM moves h0 by 0.4 and h1 by 0.1, whoever's perturbation it is."""
    result = fn.targeting(classifier, data, epsilons=["0.1"])
    np.testing.assert_allclose(result.disturbance[0], [0.4, 0.1], atol=1e-6)
    np.testing.assert_allclose(result.share[0], [0.8, 0.2], atol=1e-6)
    np.testing.assert_allclose(result.wins[0], [1, 0])
    np.testing.assert_allclose(result.weight_norm, [10**0.5, 5**0.5], rtol=1e-6)
    energy = np.array([2.2**2 + 0.3**2 + 1.2**2 + 2.65**2, 1.2**2 + 1.5**2 + 1.1**2 + 1]) / 4
    np.testing.assert_allclose(result.activation_energy, energy, rtol=1e-6)
    np.testing.assert_allclose(result.relative[0], [0.4, 0.1] / np.sqrt(energy), rtol=1e-5)
    np.testing.assert_allclose(result.swap_share[0], [0.8, 0.2], atol=1e-6)
    np.testing.assert_allclose(result.excess[0], [0, 0], atol=1e-5)
    assert (result.images[0, 0], result.undisturbed[0, 0]) == (3, 0)


def test_noise_control(classifier: fn.Classifier, data: fn.ImageData) -> None:
    """Unlike signs move (h0, h1) by (0.4, 0.1), like signs by (0.2, 0.3): shares of h0 0.8 and 0.4."""
    result = fn.targeting(classifier, data, epsilons=["0.1"])
    shares = []
    for image in (0, 1, 2):
        signs = numpy_generator(0, "noise", image).integers(0, 2, (NOISE_DRAWS, 1, 1, 2), dtype=np.int8)
        alike = (signs[..., 0] == signs[..., 1]).mean()
        shares.append(0.4 * alike + 0.8 * (1 - alike))
    np.testing.assert_allclose(result.noise_share[0], [np.mean(shares), 1 - np.mean(shares)], atol=1e-6)
    np.testing.assert_allclose(result.noise_excess[0], np.log([0.8, 0.2] / result.noise_share[0]), atol=1e-5)


def test_groups(classifier: fn.Classifier, data: fn.ImageData) -> None:
    rows = fn.targeting(classifier, data, epsilons=["0.1"]).groups_table().to_pylist()
    assert {row["group"] for row in rows} == {"all", "fooled", "resisted", "class:zero", "class:one"}
    assert all(row["share"] == pytest.approx(0.8 if row["channel"] == 0 else 0.2) for row in rows)


def test_epsilon_zero_has_no_targeting(classifier: fn.Classifier, data: fn.ImageData) -> None:
    result = fn.targeting(classifier, data, epsilons=["0", "0.1"])
    assert np.isnan(result.share[0]).all()
    assert np.isfinite(result.share[1]).all()


def test_a_network_that_is_always_wrong_has_no_targeting(
    classifier: fn.Classifier, data: fn.ImageData
) -> None:
    wrong = fn.ImageData(data.images, 1 - data.labels, data.classes).take(np.array([0, 1, 2]))
    result = fn.targeting(classifier, wrong, epsilons=["0.1"])
    assert np.isnan(result.share).all()
    relation = fn.correlate(classifier, wrong, epsilons=["0.1"])
    assert all(np.isnan(pair.correlation.spearman) for pair in relation.pairs)
