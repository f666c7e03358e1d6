"""Cumulative curves against networks with their kernels set to zero, and orders derived a second time."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from edited import without_channels
from torch import nn

import fragile_neurons as fn
from fragile_neurons.analysis.cumulative import DRAWS, halves, steps_of
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.stats import wilson

EPSILON = Fraction(1, 20)


def right(classifier: fn.Classifier, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = (classifier(images).argmax(1) == labels).numpy()
    return found


def test_steps_double_below_all_of_them() -> None:
    assert steps_of(1) == (0,)
    assert steps_of(6) == (0, 1, 2, 4)
    assert steps_of(32) == (0, 1, 2, 4, 8, 16)


def test_halves_are_halves_and_seeded() -> None:
    one, again, other = halves(41, 0), halves(41, 0), halves(41, 1)
    assert np.bincount(one).tolist() == [20, 21]
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.fixture
def restless() -> tuple[fn.Classifier, fn.ImageData]:
    """An untrained network and noise, labelled as it says but for a third: its halves disagree."""
    torch.manual_seed(1)
    linear = nn.Linear(10 * 9, 3)
    module = nn.Sequential(nn.Conv2d(1, 10, 3, stride=2), nn.ReLU(), nn.Flatten(), linear)
    classifier = fn.Classifier(module).eval()
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(images).float() / 255)
        linear.bias.sub_(logits.mean(dim=0))  # so that every class is said
        said = (logits - logits.mean(dim=0)).argmax(1).numpy()
    labels = np.where(np.arange(60) % 3 == 0, (said + 1) % 3, said)
    return classifier, fn.ImageData(images, labels.astype(np.int64), ("one", "two", "three"), name="noise")


@pytest.mark.parametrize("mode", ["adaptive", "transfer"])
def test_a_curve_is_the_network_without_more_and_more_kernels_by_the_order_of_the_other_half(
    restless: tuple[fn.Classifier, fn.ImageData], mode: str
) -> None:
    classifier, data = restless
    found = fn.cumulative(classifier, data, epsilons=[str(EPSILON)], mode=mode, batch_size=16)
    (images, labels), half = data[:], halves(len(data), 0)
    (curve,) = [one for one in found.curves if one.order == "fragility"]
    with torch.no_grad():
        margin = {}
        for channel in (None, *range(10)):
            logits = without_channels(classifier, "0", [] if channel is None else [channel])(images)
            true = logits.gather(1, labels[:, None]).squeeze(1)
            margin[channel] = true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    by_side = []
    for side in (0, 1):
        fall = [float((margin[None] - margin[channel])[half != side].mean()) for channel in range(10)]
        order = sorted(range(10), key=lambda channel: -fall[channel])
        answers = []
        for step in curve.steps:
            edited = without_channels(classifier, "0", order[:step])
            attacked = fgsm(edited if mode == "adaptive" else classifier, images, labels, [EPSILON])[0]
            answers.append([right(edited, images, labels), right(edited, attacked, labels)])
        by_side.append(np.array(answers).swapaxes(0, 1))
        tried = half == side
        np.testing.assert_array_equal(curve.right[..., tried], by_side[-1][..., tried])
    for side in (0, 1):  # the order of the same half would have given another curve
        assert (by_side[0] != by_side[1])[0][:, half == side].any()


def test_the_targeted_come_first_in_their_order_and_random_orders_are_a_control(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    """conv1 of which one channel alone is moved by the attack: without it first, the others are nothing."""
    conv = small_classifier.module.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight[[0, 1, 3]] *= 1e-3
    found = fn.cumulative(small_classifier, small_data, epsilons=["0.1"], mode="transfer")
    by_order = {
        order: [one for one in found.curves if one.order == order] for order in ("targeting", "random")
    }
    (struck,) = by_order["targeting"]
    images, labels = small_data[:]
    np.testing.assert_array_equal(
        struck.right[0, 1], right(without_channels(small_classifier, "conv1", [2]), images, labels)
    )
    draws = by_order["random"]
    assert [one.draw for one in draws] == list(range(DRAWS))
    first = {tuple(one.right[0, 1].tolist()) for one in draws}
    assert len(first) > 1
    for one in draws:
        np.testing.assert_array_equal(one.right[0, 0], right(small_classifier, images, labels))


def test_a_table_has_every_draw_with_n_and_its_interval(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    rows = fn.cumulative(small_classifier, small_data, layer="all").to_table().to_pylist()
    assert {row["epsilon"] for row in rows} == {None}
    assert {row["order"] for row in rows} == {"fragility", "random"}
    assert len(rows) == (1 + DRAWS) * (len(steps_of(4)) + len(steps_of(6)))
    for row in rows:
        assert row["n"] == len(small_data)
        assert (row["low"], row["high"]) == wilson(round(row["accuracy"] * row["n"]), row["n"])
