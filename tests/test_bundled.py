"""The bundled networks on real MNIST images: the cards' claims, and figures pinned from a checked run.

The pins allow for other processors, whose kernels round differently: a flip of a prediction or two.
"""

from __future__ import annotations

import numpy as np
import pytest

import fragile_neurons as fn
from fragile_neurons.models.loading import MODELS

CLAIMS = {"mnist-cnn": 0.99, "mnist-cnn-robust": 0.97, "cifar10-resnet20": 0.90}
MEGABYTES = {"mnist-cnn": 2.0, "mnist-cnn-robust": 2.0, "cifar10-resnet20": 1.2}


@pytest.mark.parametrize("name", ["mnist-cnn", "mnist-cnn-robust"])
def test_cards_tell_the_truth_about_clean_accuracy_and_fgsm(name: str) -> None:
    hold_against_card(name)


@pytest.mark.slow
@pytest.mark.usefixtures("cifar10")
def test_the_card_of_the_cifar_network_tells_the_truth() -> None:
    hold_against_card("cifar10-resnet20")


@pytest.mark.parametrize("name", MODELS)
def test_cards_claim_what_is_asked_of_them_and_belong_to_the_weights(name: str) -> None:
    card = MODELS[name].card()
    assert card["clean_accuracy"]["value"] >= CLAIMS[name]
    assert card["clean_accuracy"]["n"] == 10_000
    assert card["weights_sha256"] == fn.load_model(name).sha256()


def hold_against_card(name: str) -> None:
    card, data = MODELS[name].card(), fn.load_data(MODELS[name].data)
    classifier = fn.load_model(name)
    assert card["weights_sha256"] == classifier.sha256()
    assert card["data"]["test_sha256"] == data.sha256
    fgsm = {row["epsilon"]: row for row in card["robust_accuracy"] if row["attack"] == "FGSM"}
    measured = fn.robust_accuracy(classifier, data, epsilons=["0", *fgsm])
    claimed = [card["clean_accuracy"], *fgsm.values()]
    for position, claim in enumerate(claimed):
        accuracy = measured.at(position)
        assert accuracy.n == claim["n"] == 10_000
        assert accuracy.value == pytest.approx(claim["value"], abs=2e-4)
        assert accuracy.ci95 == pytest.approx(claim["ci95"], abs=2e-4)
    assert measured.at(0).value >= CLAIMS[name]


@pytest.mark.parametrize("name", MODELS)
def test_bundled_files_are_small(name: str) -> None:
    assert MODELS[name].weights.stat().st_size < MEGABYTES[name] * 1e6


@pytest.mark.slow
def test_the_robust_network_withstands_pgd() -> None:
    card = MODELS["mnist-cnn-robust"].card()
    (claim,) = (row for row in card["robust_accuracy"] if row["attack"].startswith("PGD"))
    assert claim["epsilon"] == "0.2"
    assert claim["n"] == 10_000
    data = fn.load_data("mnist", limit=2_000)
    measured = fn.robust_accuracy(fn.load_model("mnist-cnn-robust"), data, attack="pgd", epsilons=["0.2"]).at(
        0
    )
    assert claim["value"] >= 0.85
    assert measured.ci95[0] <= claim["value"] <= measured.ci95[1]


@pytest.fixture(scope="module")
def images() -> fn.ImageData:
    return fn.load_data("mnist", limit=500)


@pytest.fixture(scope="module")
def classifier() -> fn.Classifier:
    return fn.load_model("mnist-cnn")


def test_pinned_robust_accuracy(classifier: fn.Classifier, images: fn.ImageData) -> None:
    measured = fn.robust_accuracy(classifier, images, epsilons=["0", "0.1", "0.2"])
    assert [measured.at(row).right for row in range(3)] == pytest.approx([498, 430, 190], abs=2)


def test_pinned_nodal_dropout(classifier: fn.Classifier, images: fn.ImageData) -> None:
    """Lost and gained on clean images were checked against copies with kernel and bias at zero."""
    drop = fn.dropout(classifier, images, neurons="conv1:3,conv1:9,conv1:14,conv1:21", epsilons=["0.1"])
    np.testing.assert_allclose(drop.clean.lost, [0, 0, 0, 0], atol=1)
    np.testing.assert_allclose(drop.clean.gained, [1, 1, 0, 1], atol=1)
    np.testing.assert_allclose(drop.adv[0].lost, [9, 29, 20, 15], atol=2)
    np.testing.assert_allclose(drop.adv[0].gained, [1, 9, 4, 16], atol=2)
    assert drop.adv[0].verdict.tolist()[1:] == ["fragile", "fragile", "undecided"]
    np.testing.assert_allclose(drop.margin_drop, [-0.4623, 1.6888, 1.2422, 1.1095], atol=2e-3)
    np.testing.assert_allclose(drop.adv_margin_drop[0], [0.1570, 1.2865, 0.9210, 0.3599], atol=2e-2)


def test_pinned_targeting(classifier: fn.Classifier, images: fn.ImageData) -> None:
    """conv1:3 and conv1:16 are between them the most disturbed neuron of every image."""
    aim = fn.targeting(classifier, images, neurons="conv1:0,conv1:3,conv1:16,conv1:18", epsilons=["0.1"])
    np.testing.assert_allclose(aim.share[0], [0.02670, 0.05269, 0.05122, 0.04306], atol=2e-4)
    np.testing.assert_allclose(aim.wins[0][1:3], [0.867, 0.133], atol=0.01)
    np.testing.assert_allclose(aim.excess[0][1:], [-0.0039, 0.0018, 0.0123], atol=2e-3)
    np.testing.assert_allclose(aim.noise_excess[0][1:], [-0.0087, 0.0052, 0.0304], atol=2e-3)
    assert aim.images[0, 0] == pytest.approx(498, abs=1)


def test_pinned_correlation(classifier: fn.Classifier) -> None:
    images = fn.load_data("mnist", limit=1000)  # of 500 a half can be without a single clean drop
    paper, controlled = (
        pair.correlation for pair in fn.correlate(classifier, images, epsilons=["0.1"]).headlines
    )
    assert (paper.n, controlled.n) == (32, 32)
    assert paper.spearman == pytest.approx(0.119, abs=0.1)
    assert controlled.spearman == pytest.approx(0.412, abs=0.03)
    assert controlled.p == pytest.approx(0.021, abs=0.01)
    assert (controlled.low, controlled.high) == pytest.approx((0.369, 0.454), abs=0.04)
    assert controlled.partial_spearman == pytest.approx(0.620, abs=0.03)
