"""Split-half correlations against scipy, plain second passes, enumeration and simulation."""

import itertools
import math
from dataclasses import astuple

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fragile_neurons.split_half import (
    Correlation,
    FloatArray,
    Measure,
    split_half_correlations,
)


def weighted_mean(values: FloatArray) -> Measure:
    return lambda weights: weights @ values / weights.sum(axis=1, keepdims=True)


def noiseless(values: FloatArray) -> Measure:
    return lambda weights: np.tile(values, (len(weights), 1))


def correlate(
    x: Measure,
    y: Measure,
    *,
    images: int,
    neurons: int,
    covariates: FloatArray | None = None,
    seed: int = 0,
    splits: int = 20,
    permutations: int = 99,
    resamples: int = 9,
) -> Correlation:
    return split_half_correlations(
        {"x": x, "y": y},
        [("x", "y")],
        np.arange(images),
        np.zeros((neurons, 0)) if covariates is None else covariates,
        seed=seed,
        splits=splits,
        permutations=permutations,
        resamples=resamples,
    )[0]


def noisy_measures(count: int, images: int, neurons: int, noise: float, seed: int = 0) -> dict[str, Measure]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=neurons)
    return {
        f"m{i}": weighted_mean(shared + rng.normal(size=neurons) + noise * rng.normal(size=(images, neurons)))
        for i in range(count)
    }


@pytest.mark.parametrize("ties", [False, True])
def test_noiseless_correlations_equal_scipy(ties: bool) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 24))
    if ties:
        x, y = np.round(x), np.round(y + x)
    result = correlate(noiseless(x), noiseless(y), images=10, neurons=24)
    assert result.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert result.kendall == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert result.disattenuated == pytest.approx(result.spearman, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((result.spearman, result.spearman), abs=1e-12)
    assert (result.n, result.reliability_x, result.reliability_y) == pytest.approx((24, 1, 1))


def test_perfect_correlation_is_one() -> None:
    x = noiseless(np.arange(6.0))
    result = correlate(x, noiseless(-np.arange(6.0)), images=4, neurons=6)
    assert (result.spearman, result.kendall, result.low, result.high) == pytest.approx((-1, -1, -1, -1))


def test_pairings_and_resamples_by_a_plain_second_pass() -> None:
    # A measure notes the weights it is asked for; plain loops over scipy must then give the same numbers.
    rng = np.random.default_rng(3)
    table_x, table_y = rng.normal(size=(2, 40, 8))
    asked: list[FloatArray] = []

    def x(weights: FloatArray) -> FloatArray:
        asked.append(weights)
        return weighted_mean(table_x)(weights)

    result = correlate(x, weighted_mean(table_y), images=40, neurons=8, splits=3)
    halves = asked[0][1:].reshape(2, 3, 40)
    assert np.array_equal(halves[0] + halves[1], np.ones((3, 40)))
    assert np.array_equal(halves.sum(axis=2), np.full((2, 3), 20))
    assert len({half.tobytes() for half in halves.reshape(6, 40)}) == 6
    shrink = 1 - 6 / (8**3 - 8)

    def average_z(
        left: FloatArray, right: FloatArray, weights: FloatArray, both_ways: bool, test: str
    ) -> float:
        z = []
        for first, second in weights:
            for a, b in [(first, second), (second, first)][: 1 + both_ways]:
                rho = getattr(stats, test)(np.average(left, 0, a), np.average(right, 0, b)).statistic
                z.append(math.atanh(shrink * rho))
        return sum(z) / len(z)

    def rho(z: float) -> float:
        return math.tanh(z) / shrink

    by_split = halves.swapaxes(0, 1)
    z = average_z(table_x, table_y, by_split, True, "spearmanr")
    assert result.spearman == pytest.approx(rho(z), abs=1e-12)
    assert result.kendall == pytest.approx(
        rho(average_z(table_x, table_y, by_split, True, "kendalltau")), abs=1e-12
    )
    for table, reliability in ((table_x, result.reliability_x), (table_y, result.reliability_y)):
        expected = rho(average_z(table, table, by_split, False, "spearmanr"))
        assert reliability == pytest.approx(expected, abs=1e-12)

    # (splits, halves, resamples, images): no image in both halves, and the same weights in all splits.
    resampled = np.stack(asked[1:]).reshape(3, 2, 9, 40)
    assert np.all((resampled > 0).sum(axis=1) <= 1)
    assert np.all(resampled.sum(axis=1) == resampled[0].sum(axis=0))
    assert np.all(resampled[0].sum(axis=(0, 2)) == 40)
    z_star = np.array([average_z(table_x, table_y, resampled[:, :, b], True, "spearmanr") for b in range(9)])
    half_width = 1.959963984540054 * 2 * math.sqrt(((z_star - z_star.mean()) ** 2).sum() / 8)
    expected_ends = (rho(z - half_width), rho(z + half_width))
    assert (result.low, result.high) == pytest.approx(expected_ends, abs=1e-12)


def test_permutation_p_approaches_full_enumeration() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 3, 5, 4])
    observed = abs(stats.spearmanr(x, y).statistic)
    every = [abs(stats.spearmanr(x, order).statistic) for order in itertools.permutations(y)]
    exact = np.mean(np.array(every) >= observed - 1e-9)
    p = correlate(noiseless(x), noiseless(y), images=4, neurons=5, permutations=9_999).p
    assert 0.05 < exact < 0.5
    assert p == pytest.approx(exact, abs=4 * math.sqrt(exact / 9_999))


def test_permutation_p_is_never_zero() -> None:
    x = noiseless(np.arange(30.0))
    assert correlate(x, x, images=4, neurons=30, permutations=199).p == 1 / 200


def test_permutation_p_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(4)
    p, partial_p = [], []
    for seed in range(300):
        tables = rng.normal(size=(2, 12, 10)) + rng.normal(size=(2, 1, 10))
        x, y = (weighted_mean(table) for table in tables)
        result = correlate(
            x,
            y,
            images=12,
            neurons=10,
            covariates=rng.normal(size=(10, 1)),
            seed=seed,
            splits=4,
            resamples=0,
        )
        p.append(result.p)
        partial_p.append(result.partial_p)
        assert math.isnan(result.low)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert stats.kstest(partial_p, "uniform").pvalue > 0.01


def rank_residuals(values: FloatArray, covariates: FloatArray) -> FloatArray:
    design = np.column_stack([np.ones(len(values)), *(stats.rankdata(c) for c in covariates.T)])
    ranks = stats.rankdata(values)
    residuals: FloatArray = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    return residuals


def test_partial_matches_least_squares_and_a_freedman_lane_loop() -> None:
    rng = np.random.default_rng(5)
    covariates = rng.normal(size=(9, 2))
    x, y = covariates.sum(axis=1) + rng.normal(size=(2, 9))
    residual_x, residual_y = rank_residuals(x, covariates), rank_residuals(y, covariates)
    rho = np.corrcoef(residual_x, residual_y)[0, 1]
    result = correlate(
        noiseless(x), noiseless(y), images=4, neurons=9, covariates=covariates, permutations=400, seed=7
    )
    assert result.partial_spearman == pytest.approx(rho, abs=1e-12)
    assert abs(rho - result.spearman) > 0.05

    # The same stream of permutations, one at a time: permute, add the fit, regress anew on the covariates.
    design = np.column_stack([np.ones(9), stats.rankdata(covariates, axis=0)])
    orders = np.random.default_rng([7, 2, 9]).permuted(
        np.tile(np.arange(9, dtype=np.int32), (400, 1)), axis=1
    )
    fitted = stats.rankdata(y) - residual_y
    extreme = 0
    for order in orders:
        y_star = fitted + residual_y[order]
        residual_star = y_star - design @ np.linalg.lstsq(design, y_star, rcond=None)[0]
        extreme += abs(np.corrcoef(residual_x, residual_star)[0, 1]) >= abs(rho) - 1e-9
    assert result.partial_p == pytest.approx((1 + extreme) / 401, abs=1e-12)


def test_partial_drops_constant_and_collinear_covariates() -> None:
    rng = np.random.default_rng(6)
    x, y, covariate = rng.normal(size=(3, 10))
    x, y = x + covariate, y + covariate
    alone, padded, none = (
        correlate(noiseless(x), noiseless(y), images=4, neurons=10, covariates=columns)
        for columns in (
            covariate[:, None],
            np.column_stack([np.full(10, 3.0), covariate, 2 * covariate]),
            np.full((10, 1), 3.0),
        )
    )
    assert padded.partial_spearman == pytest.approx(alone.partial_spearman, abs=1e-12)
    assert padded.partial_p == alone.partial_p
    assert (none.partial_spearman, none.partial_p) == pytest.approx((none.spearman, none.p), abs=1e-12)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_partial_needs_a_degree_of_freedom_and_a_residual(columns: int) -> None:
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(2, 5))
    result = correlate(
        noiseless(x), noiseless(y), images=4, neurons=5, covariates=rng.normal(size=(5, columns))
    )
    assert math.isnan(result.partial_spearman) == math.isnan(result.partial_p) == (5 - columns - 2 < 1)
    explained = correlate(noiseless(x), noiseless(y), images=4, neurons=5, covariates=np.exp(x)[:, None])
    assert math.isnan(explained.partial_spearman)
    assert math.isfinite(explained.spearman)


def test_constant_measure_and_too_few_neurons_are_undefined() -> None:
    x = noiseless(np.arange(5.0))
    alone = noiseless(np.array([1.0, 2.0, math.nan, math.nan, math.nan]))
    dead = noiseless(np.full(5, math.nan))
    for y, n in ((noiseless(np.ones(5)), 5), (alone, 2), (dead, 0)):
        result = correlate(x, y, images=6, neurons=5)
        assert astuple(result)[:3] == ("x", "y", n)
        assert all(math.isnan(value) for value in astuple(result)[3:])


def test_neurons_without_a_value_are_left_out() -> None:
    rng = np.random.default_rng(9)
    tables = rng.normal(size=(2, 30, 9))
    covariates = rng.normal(size=(9, 1))
    holed = tables.copy()
    holed[0, :, 2] = math.nan
    holed[1, :, 5] = math.inf
    kept = np.delete(np.arange(9), [2, 5])
    x, y = (weighted_mean(table[:, kept]) for table in tables)
    expected = correlate(x, y, images=30, neurons=7, covariates=covariates[kept], resamples=50)
    x, y = (lambda weights, t=table: stable_mean(weights, t) for table in holed)
    actual = correlate(x, y, images=30, neurons=9, covariates=covariates, resamples=50)
    assert actual.n == 7
    assert astuple(actual)[3:] == pytest.approx(astuple(expected)[3:], abs=1e-12, nan_ok=True)


def stable_mean(weights: FloatArray, table: FloatArray) -> FloatArray:
    means = weights @ np.nan_to_num(table, posinf=0.0) / weights.sum(axis=1, keepdims=True)
    return np.where(np.isfinite(table).all(axis=0), means, math.nan)


def test_measure_constant_in_one_half_is_undefined() -> None:
    table = np.zeros((8, 6))
    table[0] = np.arange(6.0)
    other = np.random.default_rng(10).normal(size=(8, 6))
    assert math.isnan(correlate(weighted_mean(table), weighted_mean(other), images=8, neurons=6).spearman)


@pytest.mark.parametrize("flaw", [math.nan, 0.0])
def test_resamples_without_a_value_are_dropped(flaw: float) -> None:
    spread = np.random.default_rng(10).normal(size=(8, 6))

    def flawed(share: float) -> Measure:
        def measure(weights: FloatArray) -> FloatArray:
            values = weighted_mean(spread)(weights)
            if len(weights) == 2 * 99:
                values[: int(share * 99)] = flaw
            return values

        return measure

    few, most = (
        correlate(flawed(share), weighted_mean(spread), images=8, neurons=6, resamples=99)
        for share in (0.2, 0.7)
    )
    assert few.low < few.spearman < few.high
    assert math.isnan(most.low)
    assert math.isnan(most.high)
    assert math.isfinite(most.p)


def test_disattenuated_needs_reliability() -> None:
    measures = noisy_measures(2, 60, 30, noise=2.0)
    good = correlate(measures["m0"], measures["m1"], images=60, neurons=30)
    expected = good.spearman / math.sqrt(good.reliability_x * good.reliability_y)
    assert good.disattenuated == pytest.approx(expected, abs=1e-12)
    assert good.disattenuated > good.spearman
    noise = noisy_measures(2, 60, 30, noise=100.0)
    poor = correlate(measures["m0"], noise["m1"], images=60, neurons=30)
    assert poor.reliability_y < 0.3
    assert math.isnan(poor.disattenuated)


def test_results_do_not_depend_on_the_other_pairs_or_their_order() -> None:
    measures = noisy_measures(4, 50, 12, noise=2.0)
    hole = np.where(np.arange(12) == 4, math.nan, 0.0)
    measures["holed"] = lambda weights: measures["m3"](weights) + hole
    pairs = [("m0", "m1"), ("m0", "holed"), ("m2", "m3"), ("m1", "m0"), ("m0", "m0"), ("holed", "m1")]
    covariates = np.arange(12.0)[:, None]

    def run(some: list[tuple[str, str]], seed: int = 3) -> list[Correlation]:
        return split_half_correlations(
            measures, some, np.arange(50), covariates, seed=seed, permutations=199, resamples=300
        )

    everything = run(pairs)
    assert [result.n for result in everything] == [12, 11, 12, 12, 12, 11]
    assert everything == run(pairs)
    assert run(pairs[::-1]) == everything[::-1]
    assert [run([pair])[0] for pair in pairs] == everything
    assert run(pairs, seed=4)[0].spearman != everything[0].spearman
    assert run([]) == []


@pytest.mark.parametrize(("together", "low", "high"), [(False, -1.0, -0.8), (True, -0.3, 0.3)])
def test_images_that_a_measure_takes_together_stay_in_one_half(
    together: bool, low: float, high: float
) -> None:
    """What differs between images that are each other's controls is noise; across halves it would repeat."""
    rng, images, neurons = np.random.default_rng(5), 200, 30
    own = rng.normal(size=(images, neurons))
    difference = weighted_mean(own - own[np.arange(images) ^ 1] + 0.1 * rng.normal(size=own.shape))
    (found,) = split_half_correlations(
        {"x": difference, "y": difference},
        [("x", "y")],
        np.arange(images) // 2 if together else np.arange(images),
        np.zeros((neurons, 0)),
        seed=0,
        permutations=9,
        resamples=9,
    )
    assert low <= found.reliability_y <= high


@pytest.mark.parametrize("labels", [np.arange(6), np.array([7, 3, 3, 9, 9, 9])])
def test_weights_are_those_of_groups(labels: npt.NDArray[np.int64]) -> None:
    seen: list[FloatArray] = []

    def noted(weights: FloatArray) -> FloatArray:
        seen.append(weights)
        found: FloatArray = weights @ np.random.default_rng(0).normal(size=(6, 4))
        return found

    split_half_correlations({"x": noted}, [("x", "x")], labels, np.zeros((4, 0)), seed=0, resamples=30)
    for weights in seen:
        for number in np.unique(labels):
            members = weights[:, labels == number]
            assert (members == members[:, :1]).all()
    assert {len(weights) for weights in seen} == {41, 60}


def test_arguments_are_checked() -> None:
    x = noiseless(np.arange(5.0))
    with pytest.raises(ValueError, match="covariates are not finite"):
        correlate(x, x, images=9, neurons=5, covariates=np.full((5, 1), math.nan))
    with pytest.raises(ValueError, match="covariates have 4 rows"):
        correlate(x, x, images=9, neurons=4)


def coverage(neurons: int, reliability: float, rho: float, images: int, intervals: int) -> float:
    """Share of 95 % intervals that hold the mean estimate, over new images for the same neurons."""
    rng = np.random.default_rng([neurons, round(100 * reliability), round(100 * rho)])
    scores = rng.normal(size=(neurons, 2))
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0] * math.sqrt(neurons - 1)
    mean_x, mean_y = scores[:, 0], rho * scores[:, 0] + math.sqrt(1 - rho**2) * scores[:, 1]
    scale = math.sqrt(images / 2 * (1 / reliability - 1))

    def simulate(resamples: int) -> Correlation:
        noise_x, other = rng.normal(size=(2, images, neurons))
        noise_y = 0.5 * noise_x + math.sqrt(0.75) * other
        x, y = weighted_mean(mean_x + scale * noise_x), weighted_mean(mean_y + scale * noise_y)
        seed = int(rng.integers(2**32))
        return correlate(
            x, y, images=images, neurons=neurons, seed=seed, permutations=0, splits=10, resamples=resamples
        )

    results = [simulate(199) for _ in range(intervals)]
    estimates = [result.spearman for result in results]
    target = np.tanh(np.mean(np.arctanh(estimates)))
    return float(np.mean([result.low <= target <= result.high for result in results]))


# The basic bootstrap holds about 70 % here, a standard error from plain resamples about 87 %.
def test_interval_covers_the_mean_estimate() -> None:
    assert 0.92 <= coverage(16, 0.5, 0.4, images=100, intervals=250) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("reliability", "rho"), [(0.5, 0.0), (0.8, 0.7), (0.98, 0.4)])
def test_interval_covers_the_mean_estimate_at_other_reliabilities(reliability: float, rho: float) -> None:
    assert 0.92 <= coverage(24, reliability, rho, images=200, intervals=1500) <= 0.98
