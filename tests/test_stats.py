import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from fragile_neurons.stats import (
    FloatArray,
    benjamini_hochberg,
    holm,
    mcnemar,
    tango,
    top_k_precision,
    wilson,
)

# Benjamini & Hochberg 1995, section 3.2: 15 p values; 4 are rejected at 0.05 (Bonferroni: 3).
# fmt: off
BH_1995 = np.array([
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
    0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000,
])
# fmt: on


def test_wilson_matches_newcombe_1998() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_takes_confidence() -> None:
    z2 = stats.norm.ppf(0.95) ** 2
    assert wilson(0, 50, confidence=0.9) == pytest.approx((0.0, z2 / (50 + z2)), abs=1e-12)


def test_mcnemar_matches_published_example() -> None:
    # Complete response, Cavo et al. 2012, in Fagerland, Lydersen & Laake, Contingency Tables, chapter 8.
    assert mcnemar(6, 16) == pytest.approx(0.052479, abs=5e-7)


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (0, 9), (3, 3), (2, 11), (40, 61)])
def test_mcnemar_is_twice_the_smaller_binomial_tail(lost: int, gained: int) -> None:
    pairs = lost + gained
    tail = sum(math.comb(pairs, k) for k in range(min(lost, gained) + 1)) / 2**pairs
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


def test_mcnemar_without_discordant_pairs_is_one() -> None:
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(
    ("lost", "gained", "n", "expected"),
    [
        # Fagerland, Lydersen & Laake, chapter 8: Cavo et al. 2012 and Bentur et al. 2009.
        (6, 16, 161, (-0.1240, -0.0054)),
        (1, 7, 21, (-0.517, -0.026)),
    ],
)
def test_tango_matches_published_examples(
    lost: int, gained: int, n: int, expected: tuple[float, float]
) -> None:
    decimals = 4 if n == 161 else 3
    assert tuple(round(end, decimals) for end in tango(lost, gained, n)) == expected


def likelihood_score(lost: int, gained: int, n: int, difference: float) -> float:
    """The score by numeric maximisation of the likelihood over the nuisance, share gained."""

    def minus_log_likelihood(share_gained: float) -> float:
        cells = [share_gained + difference, share_gained, 1 - 2 * share_gained - difference]
        counts = [lost, gained, n - lost - gained]
        return -sum(k * math.log(max(p, 1e-300)) for k, p in zip(counts, cells, strict=True) if k)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share_gained = optimize.minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}
    ).x
    variance = (2 * share_gained + difference - difference**2) / n
    return float(((lost - gained) / n - difference) / math.sqrt(variance))


# (0, 1, 44) is the contact-lens cross-over trial of Tango's paper.
@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(0, 1, 44), (9, 2, 60), (3, 0, 25), (5, 5, 10), (12, 3, 20), (0, 0, 30)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_tango_ends_lie_where_the_likelihood_score_is_z(
    lost: int, gained: int, n: int, confidence: float
) -> None:
    z = stats.norm.ppf((1 + confidence) / 2)
    low, high = tango(lost, gained, n, confidence)
    assert likelihood_score(lost, gained, n, low) == pytest.approx(z, abs=1e-4)
    assert likelihood_score(lost, gained, n, high) == pytest.approx(-z, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7, 10_000])
def test_tango_at_the_edges_has_closed_forms(n: int) -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    assert tango(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)
    assert tango(n, 0, n) == pytest.approx(((n - z2) / (n + z2), 1.0), abs=1e-9)
    assert tango(0, n, n) == pytest.approx((-1.0, (z2 - n) / (n + z2)), abs=1e-9)


def test_tango_is_antisymmetric_and_holds_the_estimate() -> None:
    for lost, gained in itertools.product(range(13), repeat=2):
        if lost + gained <= 12:
            low, high = tango(lost, gained, 12)
            mirrored = tango(gained, lost, 12)
            assert (-high, -low) == pytest.approx(mirrored, abs=1e-9)
            assert -1 <= low <= (lost - gained) / 12 <= high <= 1
            assert high - low > 0.2


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 0), (3, 2, 4), (-1, 0, 4)])
def test_tango_refuses_impossible_counts(lost: int, gained: int, n: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        tango(lost, gained, n)


def test_benjamini_hochberg_matches_the_1995_example() -> None:
    q = benjamini_hochberg(BH_1995)
    assert np.count_nonzero(q <= 0.05) == 4
    assert q[3] == pytest.approx(15 * 0.0095 / 4, abs=1e-12)
    assert np.array_equal(benjamini_hochberg(BH_1995[::-1])[::-1], q)


def naive_step_up(p: FloatArray) -> list[float]:
    ordered = sorted(p)
    return [min([1.0, *(len(p) * b / (ordered.index(b) + ordered.count(b)) for b in p if b >= a)]) for a in p]


def test_benjamini_hochberg_equals_its_definition() -> None:
    p = np.round(np.random.default_rng(0).random(60) ** 3, 2)
    assert benjamini_hochberg(p) == pytest.approx(naive_step_up(p), abs=1e-12)


def test_holm_by_hand() -> None:
    # Sorted 0.01 0.02 0.022 0.6, times 4 3 2 1: 0.04 0.06 0.044 0.6; the third may not fall below the second.
    assert holm(np.array([0.022, 0.6, 0.01, 0.02])) == pytest.approx([0.06, 0.6, 0.04, 0.06], abs=1e-12)
    assert holm(np.array([0.5, 0.4, 0.9])).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
def test_adjusted_p_of_a_whole_study(adjust: Callable[[FloatArray], FloatArray]) -> None:
    p = np.random.default_rng(1).random(26_560)
    p[:200] = 1e-9
    adjusted = adjust(p)
    order = np.argsort(p)
    assert np.all(np.diff(adjusted[order]) >= 0)
    assert np.all((adjusted >= p) & (adjusted <= 1))
    assert np.count_nonzero(adjusted <= 1e-4) == 200
    assert adjust(np.array([])).shape == (0,)


def test_top_k_precision_by_enumeration() -> None:
    scores = np.array([0.9, 0.1, 0.8, 0.7, 0.3, 0.2, 0.05])
    positive = np.array([True, False, True, False, True, False, False])
    precision, p = top_k_precision(scores, positive)
    sets = list(itertools.combinations(range(7), 3))
    assert precision == pytest.approx(2 / 3)
    assert p == pytest.approx(sum(sum(positive[list(s)]) >= 2 for s in sets) / len(sets), abs=1e-12)


def test_top_k_precision_breaks_ties_by_index_and_puts_nan_last() -> None:
    assert top_k_precision(np.zeros(4), np.array([True, False, False, False]))[0] == 1.0
    assert top_k_precision(np.zeros(4), np.array([False, False, False, True]))[0] == 0.0
    assert top_k_precision(np.array([math.nan, -5.0]), np.array([True, False]))[0] == 0.0
    assert all(math.isnan(v) for v in top_k_precision(np.zeros(4), np.zeros(4, dtype=bool)))
    assert top_k_precision(np.zeros(3), np.ones(3, dtype=bool)) == pytest.approx((1.0, 1.0))
