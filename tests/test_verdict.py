"""The decision list on planted numbers: each verdict, and each just missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fragile_neurons.hardening.verdict import Findings, Paired, decide, left_over
from fragile_neurons.stats import tango

N = 1_000


def pair(before: int, after: int, n: int = N) -> Paired:
    """So many images right before and after, nested, so that all changes go one way; spread evenly."""
    order = np.arange(n) * 617 % n
    return Paired(order < before, order < after)


def findings(**changes: Any) -> Findings:
    """A hardening that holds: clean 95.0 to 94.6, FGSM 30 to 60, PGD 20 to 50, what is stronger alike."""
    plain = Findings(
        clean=pair(950, 946),
        fgsm=pair(300, 600),
        pgd=pair(200, 500),
        stronger={"apgd": pair(90, 230, 500), "matched": pair(100, 240, 500)},
        control=np.arange(500) < 250,
        shuffled=np.tile(np.arange(500) < 249, (20, 1)),
        budget=0.01,
    )
    return replace(plain, **changes)


def test_the_gain_and_its_interval_are_those_of_paired_images() -> None:
    one = Paired(np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 1, 1], bool))
    assert one.gain == pytest.approx(0.2)
    assert one.ci95 == tango(2, 1, 5)


def test_it_holds() -> None:
    verdict, reason = decide(findings())
    assert verdict == "holds"
    assert "+30.00 pp" in reason
    assert "-0.40 pp" in reason
    assert "not surely" not in reason
    verdict, reason = decide(
        findings(clean=pair(950, 950), pgd=pair(200, 206), stronger={"apgd": pair(100, 103, 500)})
    )
    assert verdict == "holds"
    assert reason.endswith(", under apgd +0.60 pp, not surely above 0")


def test_changes_nothing() -> None:
    same = {"clean": pair(950, 950), "fgsm": pair(300, 302), "pgd": pair(200, 201)}
    assert decide(findings(**same))[0] == "changes nothing"
    assert decide(findings(**same | {"fgsm": pair(300, 330)}))[0] != "changes nothing"


def test_costs_more_than_it_brings() -> None:
    assert decide(findings(clean=pair(950, 939)))[0] == "costs more than it brings"
    assert decide(findings(clean=pair(950, 940)))[0] == "holds"  # just the budget
    assert decide(findings(clean=pair(950, 945), pgd=pair(200, 204)))[0] == "costs more than it brings"
    assert decide(findings(clean=pair(950, 800), pgd=pair(200, 100)))[0] == "costs more than it brings"


def test_vanishes_under_stronger_attack() -> None:
    only_fgsm = findings(clean=pair(950, 950), pgd=pair(200, 200))
    assert decide(only_fgsm)[0] == "vanishes under stronger attack"
    for name in ("apgd", "matched"):
        weak = findings().stronger | {name: pair(100, 130, 500)}
        verdict, reason = decide(findings(pgd=pair(200, 350), stronger=weak))
        assert verdict == "vanishes under stronger attack"
        assert name in reason


def test_no_robust_gain() -> None:
    nothing = {"clean": pair(950, 965), "fgsm": pair(300, 300), "stronger": {}}
    assert decide(findings(pgd=pair(200, 200), **nothing))[0] == "no robust gain"
    assert decide(findings(pgd=pair(200, 150), **nothing))[0] == "no robust gain"
    nothing["stronger"] = {"apgd": pair(200, 150, 500)}  # the same loss: there is no gain that could vanish
    assert decide(findings(pgd=pair(200, 150), **nothing))[0] == "no robust gain"


def test_no_better_than_shuffled_gains() -> None:
    shuffled = np.tile(np.arange(500) < 200, (20, 1))
    assert decide(findings(shuffled=shuffled))[0] == "holds"
    shuffled[7] = np.arange(500) < 250  # one of twenty is as good
    verdict, reason = decide(findings(shuffled=shuffled))
    assert verdict == "no better than shuffled gains"
    assert "1 of 20" in reason
    assert decide(findings(shuffled=None))[0] == "holds"  # a pair without gains has no such control


def test_the_order_of_the_list() -> None:
    """Where several apply, the first: cost before vanishing, vanishing before shuffles."""
    weak = {"apgd": pair(100, 100, 500)}
    shuffled = np.tile(np.arange(500) < 300, (20, 1))
    everything = findings(clean=pair(950, 900), stronger=weak, shuffled=shuffled)
    assert decide(everything)[0] == "costs more than it brings"
    assert decide(replace(everything, clean=pair(950, 950)))[0] == "vanishes under stronger attack"
    assert (
        decide(replace(everything, clean=pair(950, 950), stronger={}))[0] == "no better than shuffled gains"
    )


def test_left_over_is_a_mean_of_differences_of_the_same_images() -> None:
    generator = np.random.default_rng(0)
    draws = generator.random((4, 400)) < 0.5
    pgd, stronger = Paired(draws[0], draws[1]), Paired(draws[2][:300], draws[3][:300])
    each = (draws[3] * 1.0 - draws[2])[:300] - 0.8 * (draws[1] * 1.0 - draws[0])[:300]
    error = each.std(ddof=1) / np.sqrt(300)
    half = stats.t.ppf(0.975, 299) * error
    np.testing.assert_allclose(
        left_over(stronger, pgd), (each.mean(), each.mean() - half, each.mean() + half), rtol=1e-9
    )


def test_left_over_covers_its_truth() -> None:
    """Over planted data sets the interval holds the true value in 93 to 97 % of them."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(1_000):
        before, gained, kept = (generator.random((3, 500)) < np.array([[0.2], [0.3], [0.7]])).astype(bool)
        pgd, stronger = Paired(before, before | gained), Paired(before, before | (gained & kept))
        _, low, high = left_over(stronger, pgd)
        truth = 0.8 * 0.3 * (0.7 - 0.8)  # of the images wrong before, 0.8, those gained, 0.3
        covered += low <= truth <= high
    assert 930 <= covered <= 970
