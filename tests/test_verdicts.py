"""Verdicts on drops that are built flip by flip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.verdicts import Drops, Rule, judge_adversarial, judge_clean
from fragile_neurons.errors import InputError
from fragile_neurons.stats import benjamini_hochberg, mcnemar
from fragile_neurons.sweeps.observed import Dropped

N = 2_000


def whole(adv_wrong: int = 800, zero_gradient: int = 0) -> Predictions:
    """A network that is right on the first 1,900 images, and under attack on all but some."""
    label = np.zeros(N, np.int64)
    prediction = np.where(np.arange(N) < 1_900, 0, 1)
    adv_prediction = np.where(np.arange(N) < N - adv_wrong, 0, 1)[None]
    ones = np.ones(N, np.float32)
    blind = np.arange(N) < zero_gradient
    return Predictions(label, prediction, ones, 10 * ones, blind, adv_prediction, ones[None])


def flipped(right: np.ndarray, flips: list[tuple[int, int]], moves: list[float], **changed: Any) -> Dropped:
    """Neurons that lose the first and gain the last so many images, clean and adversarial alike."""
    without = np.repeat(right[:, None], len(flips), axis=1)
    for neuron, (lost, gained) in enumerate(flips):
        without[:lost, neuron] = False
        without[N - gained :, neuron] = True
    move = np.tile(np.array(moves, np.float32), (N, 1))
    margin = np.zeros_like(move)
    blind = np.zeros(without.shape, bool)
    fields = {
        "clean_right": without,
        "clean_margin": margin,
        "clean_move": move,
        "transfer_right": without[None],
        "transfer_margin": margin[None],
        "transfer_move": move[None],
        "adv_right": without[None],
        "adv_margin": margin[None],
        "zero_gradient": blind,
        "clean_heaviest": move[:1] * 0 + 1,
        "transfer_heaviest": move[None, :1] * 0 + 1,
        "adv_heaviest": move[None, :1] * 0 + 1,
    }
    return Dropped(**(fields | changed))


def clean(flips: list[tuple[int, int]], moves: list[float] | None = None, rule: Rule | None = None) -> Drops:
    predictions = whole()
    dropped = flipped(predictions.right, flips, moves or [1.0] * len(flips))
    layers = np.array(["conv1"] * len(flips))
    return judge_clean(predictions.right[:, None], dropped, predictions, layers, rule or Rule())


def adversarial(predictions: Predictions, dropped: Dropped, mode: str = "adaptive") -> Drops:
    layers = np.array(["conv1"] * dropped.clean_right.shape[1])
    right = predictions.adv_right[0][:, None]
    return judge_adversarial(right, dropped.adv_right[0], dropped, 0, predictions, layers, Rule(), mode=mode)


def test_the_five_verdicts() -> None:
    """100 lost: fragile. 100 gained: antifragile. 10 each: surely within 1 point. 60 each: not sure."""
    drops = clean([(100, 0), (0, 100), (0, 0), (10, 10), (60, 60)], [1, 1, 1e-5, 1, 1])
    assert drops.verdict.tolist() == ["fragile", "antifragile", "null", "robust", "undecided"]
    np.testing.assert_allclose(drops.drop, [0.05, -0.05, 0, 0, 0])
    assert drops.lost.tolist() == [100, 0, 0, 10, 60]
    assert np.isnan(drops.q[2])


def test_q_values_leave_nulls_out_and_stay_within_a_layer() -> None:
    predictions = whole()
    flips = [(12, 2), (9, 1), (0, 0), (7, 0)]
    dropped = flipped(predictions.right, flips, [1, 1, 0, 1])
    layers = np.array(["a", "a", "a", "b"])
    drops = judge_clean(predictions.right[:, None], dropped, predictions, layers, Rule())
    np.testing.assert_allclose(drops.q[:2], benjamini_hochberg(np.array([mcnemar(12, 2), mcnemar(9, 1)])))
    assert np.isnan(drops.q[2])
    assert drops.q[3] == mcnemar(7, 0)


def test_a_significant_drop_within_the_tolerance_is_fragile_but_small() -> None:
    drops = clean([(8, 0), (100, 0)])
    assert drops.verdict.tolist() == ["fragile", "fragile"]
    assert drops.small.tolist() == [True, False]


def test_undecided_says_how_many_images_would_decide() -> None:
    drops = clean([(60, 60), (10, 10)])
    assert N < drops.needed[0] < 100 * N
    assert np.isnan(drops.needed[1])
    half = (drops.high[0] - drops.low[0]) / 2
    # at that many images a half width shrinking with the root of n just fits into one point
    np.testing.assert_allclose(half * np.sqrt(N / drops.needed[0]), 0.01, rtol=1e-3)


def test_below_mean_is_relative_to_its_layer() -> None:
    drops = clean([(100, 0), (0, 0), (2, 0)], rule=Rule("below-mean"))
    assert drops.verdict.tolist() == ["fragile", "robust", "robust"]


def test_below_mean_calls_no_tie_fragile() -> None:
    """The mean of six equal floats may round below them; lost and gained are counted instead."""
    drops = clean([(3, 0)] * 6, rule=Rule("below-mean"))
    assert drops.verdict.tolist() == ["robust"] * 6


@pytest.mark.parametrize(
    ("adv_wrong", "expected"),
    [(29, "undecided"), (30, "fragile"), (N - 30, "fragile"), (N - 29, "undecided")],
)
def test_adversarial_verdicts_need_thirty_right_and_thirty_wrong(adv_wrong: int, expected: str) -> None:
    predictions = whole(adv_wrong)
    dropped = flipped(predictions.adv_right[0], [(29, 0)], [1.0])
    assert adversarial(predictions, dropped).verdict[0] == expected


def test_no_verdict_where_the_drop_blinds_the_attack() -> None:
    predictions = whole(zero_gradient=100)
    blind = np.zeros((N, 2), bool)
    blind[:121, 0] = True  # 1.05 % more than the whole network's
    blind[:119, 1] = True  # 0.95 %
    dropped = flipped(predictions.adv_right[0], [(200, 0)] * 2, [1.0] * 2, zero_gradient=blind)
    assert adversarial(predictions, dropped).verdict.tolist() == ["undecided", "fragile"]


def test_transfer_keeps_the_drop_and_withholds_the_verdict() -> None:
    predictions = whole()
    drops = adversarial(predictions, flipped(predictions.adv_right[0], [(200, 0)], [1.0]), mode="transfer")
    assert drops.drop[0] == 0.1
    assert drops.lost[0] == 200
    assert drops.verdict[0] is None
    assert np.isnan(drops.q[0])


def test_a_channel_that_only_wakes_under_attack_is_null_on_clean_images_alone() -> None:
    predictions = whole()
    dropped = flipped(predictions.right, [(0, 0)], [0.0], transfer_move=np.ones((1, N, 1), np.float32))
    layers = np.array(["conv1"])
    assert judge_clean(predictions.right[:, None], dropped, predictions, layers, Rule()).verdict[0] == "null"
    assert adversarial(predictions, dropped).verdict[0] != "null"


@pytest.mark.parametrize(("name", "tolerance"), [("median", 0.01), ("tested", 0.0), ("tested", 1.0)])
def test_bad_rules_are_refused(name: str, tolerance: float) -> None:
    with pytest.raises(InputError):
        Rule(name, tolerance)
