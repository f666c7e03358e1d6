"""Masks, controls and denominators of targeting, on disturbances written by hand."""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.analysis.disturbance import Disturbances, _partners, observe_disturbances
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.selection import Selection, select
from fragile_neurons.analysis.targeting import Targeting, summarise_targeting
from fragile_neurons.errors import InputError

EPSILON = (Fraction(1, 10),)

# image:        0 fooled  1 resisted  2 wrong  3 fooled, undisturbed  4 resisted, nobody to swap with
SHARES = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.0, 0.0], [0.2, 0.8]], np.float32)
SWAPPED = np.array([True, True, False, False, False])


@pytest.fixture
def summary() -> Targeting:
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), flatten=nn.Flatten(), fc=nn.Linear(8, 2)))
    classifier = fn.Classifier(module)
    images = np.random.default_rng(0).random((5, 1, 4, 4), dtype=np.float32)
    data = fn.ImageData(images, np.array([0, 1, 0, 0, 1]), ("zero", "one"))
    selection: Selection = select(classifier, data)
    label = np.array([0, 1, 0, 0, 1])
    zeros = np.zeros(5, np.float32)
    predictions = Predictions(
        label=label,
        prediction=np.array([0, 1, 1, 0, 1]),
        margin=zeros,
        largest_logit=zeros,
        zero_gradient=np.zeros(5, bool),
        adv_prediction=np.array([[1, 1, 1, 1, 1]]),
        adv_margin=zeros[None],
    )
    control = np.array([[0.5, 0.5], [0.7, 0.3], [0.1, 0.9], [0.0, 0.0], [0.0, 0.0]], np.float32)
    observed = Disturbances(
        disturbance=(SHARES * 3)[None],
        swap_share=control[None],
        noise_share=control[None] + np.array([0, 0, 0, 0, 0.5], np.float32)[:, None],
        swapped=SWAPPED,
        group=np.arange(5),
        energy=np.ones((5, 2), np.float32),
    )
    return summarise_targeting(classifier, selection, data.classes, predictions, {"conv": observed}, EPSILON)


def test_shares_are_over_right_and_disturbed_images(summary: Targeting) -> None:
    np.testing.assert_allclose(summary.share[0], SHARES[[0, 1, 4]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(summary.wins[0], [2 / 3, 1 / 3])
    assert summary.images[0].tolist() == [3, 3]
    assert summary.undisturbed[0].tolist() == [1, 1]


def test_each_group_has_its_own_images_and_denominator(summary: Targeting) -> None:
    expected = {"fooled": [0], "resisted": [1, 4], "class:zero": [0], "class:one": [1, 4], "all": [0, 1, 4]}
    assert set(summary.groups) == set(expected)
    for group, images in expected.items():
        found = summary.groups[group]
        np.testing.assert_allclose(found["share"][0], SHARES[images].mean(axis=0), rtol=1e-6, err_msg=group)
        assert found["images"][0].tolist() == [len(images)] * 2
    rows = summary.groups_table().to_pylist()
    assert [row["images"] for row in rows if row["group"] == "fooled"] == [1, 1]


def test_the_swap_control_is_over_images_that_had_a_partner(summary: Targeting) -> None:
    np.testing.assert_allclose(summary.swap_share[0], [0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose(
        summary.noise_share[0], np.array([0.5 + 0.7 + 0.5, 0.5 + 0.3 + 0.5]) / 3, rtol=1e-6
    )
    np.testing.assert_allclose(summary.excess[0], np.log(summary.share[0] / [0.6, 0.4]), rtol=1e-5)


@pytest.mark.parametrize("last", [17, 16])
def test_partners_are_two_and_two_of_the_usable_rows_or_three(last: int) -> None:
    usable = (np.arange(20) % 3 != 0) & (np.arange(20) < last)
    positions = 40 + np.arange(20) % last  # the last rows are filling
    rows = np.flatnonzero(usable[:last])
    for seed in range(20):
        partner, swapped, group = _partners(usable, positions, seed)
        assert np.flatnonzero(swapped).tolist() == rows.tolist()
        assert sorted(partner[rows].tolist()) == rows.tolist()
        assert (partner[rows].numpy() != rows).all()
        assert (group[partner] == group)[:last].all()
        found, sizes = np.unique(group[rows], return_counts=True)
        assert sorted(sizes) == [2] * (len(sizes) - 1) + [2 + len(rows) % 2]
        assert all(number == positions[rows][group[rows] == number].min() for number in found)
        unpaired = np.setdiff1d(np.arange(last), rows)
        assert (group[unpaired] == positions[unpaired]).all()
    lone = np.zeros(20, bool)
    lone[4] = True
    assert not _partners(lone, positions, 0)[1].any()


def test_no_image_takes_the_attack_of_the_filling_of_its_batch(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    layers = select(small_classifier, small_data).layers
    for seed in range(5):
        options = {"batch_size": 16, "seed": seed}
        observed = observe_disturbances(small_classifier, small_data, layers, "conv", EPSILON, **options)
        group, swapped = observed["conv1"].group, observed["conv1"].swapped
        assert [group[start : start + 16].min() >= start for start in (0, 16, 32)] == [True] * 3
        _, sizes = np.unique(group[swapped], return_counts=True)
        assert sizes.min() >= 2


def test_controls_sum_to_one_though_some_images_have_no_gradient() -> None:
    """The last layer times 70 saturates the softmax even in float64 for confident images."""
    classifier, data = fn.load_model("mnist-cnn"), fn.load_data("mnist", limit=60)
    for parameter in classifier.module.get_submodule("fc2").parameters():
        parameter.data *= 70
    aim = fn.targeting(classifier, data, epsilons=["0.1"])
    assert aim.undisturbed[0][0] > 0
    for shares in (aim.share, aim.swap_share, aim.noise_share):
        np.testing.assert_allclose(shares[0].sum(), 1, atol=1e-5)


class Viewing(nn.Module):
    """A network as many write it: the activations must lie in memory as a view needs them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 64, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.conv(images))
        logits: torch.Tensor = self.fc(features.view(features.size(0), -1))
        return logits


def test_a_network_that_views_its_activations_is_analysed() -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).random((12, 3, 8, 8), dtype=np.float32)
    data = fn.ImageData(images, np.arange(12) % 3, ("a", "b", "c"))
    fn.targeting(fn.Classifier(Viewing()), data, epsilons=["0.1"])
    fn.dropout(fn.Classifier(Viewing()), data, epsilons=["0.1"])


def test_a_network_that_changes_its_input_in_place_does_no_harm() -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32)
    data = fn.ImageData(images, np.arange(12) % 3, ("a", "b", "c"))
    hard = nn.Hardtanh(0.2, 0.8, inplace=True)
    module = nn.Sequential(hard, nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    batch, _ = data[:]
    kept = batch.clone()
    fn.Classifier(module)(batch)
    assert torch.equal(batch, kept)
    fn.dropout(fn.Classifier(module), data, epsilons=["0.1"])


def test_gradients_that_are_not_finite_are_refused() -> None:
    class Root(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images.flatten(1)[:, :2] * 0).sqrt()

    data = fn.ImageData(np.ones((4, 1, 2, 2), np.float32), np.array([0, 1, 0, 1]), ("a", "b"))
    with pytest.raises(InputError, match="not finite"):
        fn.robust_accuracy(fn.Classifier(Root()), data, epsilons=["0.1"])
    with pytest.raises(InputError, match="no epsilon"):
        fn.robust_accuracy(fn.Classifier(Root()), data, epsilons=[])


def test_a_layer_that_mixes_images_into_its_first_axis_is_refused() -> None:
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.fc = nn.Linear(3 * 72, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(self.conv(images.reshape(-1, 1, 8, 8)).reshape(len(images), -1))
            return logits

    data = fn.ImageData(
        np.random.default_rng(0).random((6, 3, 8, 8), dtype=np.float32), np.arange(6) % 3, ("a", "b", "c")
    )
    with pytest.raises(InputError, match="does not keep the images apart"):
        fn.targeting(fn.Classifier(Folding()), data, epsilons=["0.1"])
