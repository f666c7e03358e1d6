"""The bundled networks on real MNIST images: the cards' claims, and figures pinned from a checked run.

The pins allow for other processors, whose kernels round differently: a flip of a prediction or two.
"""

from __future__ import annotations

import numpy as np
import pytest

import fragile_neurons as fn
from fragile_neurons.models.loading import MODELS

CLAIMS = {"mnist-cnn": 0.99, "mnist-cnn-robust": 0.97}


@pytest.mark.parametrize("name", MODELS)
def test_cards_tell_the_truth_about_clean_accuracy_and_fgsm(name: str) -> None:
    card, data = MODELS[name].card(), fn.load_data("mnist")
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
    assert MODELS[name].weights.stat().st_size < 2 * 2**20


@pytest.mark.slow
def test_the_robust_network_withstands_pgd() -> None:
    card = MODELS["mnist-cnn-robust"].card()
    (claim,) = (row for row in card["robust_accuracy"] if row["attack"].startswith("PGD"))
    assert claim["epsilon"] == "0.2"
    assert claim["n"] == 10_000
    data = fn.load_data("mnist", limit=2_000)
    measured = fn.robust_accuracy(
        fn.load_model("mnist-cnn-robust"), data, attack="pgd", epsilons=["0.2"]
    ).at(0)
    assert claim["value"] >= 0.85
    assert measured.ci95[0] <= claim["value"] <= measured.ci95[1]
