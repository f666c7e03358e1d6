"""Split-half correlations: two measures over neurons, each side from its own half of the images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg, stats

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int32]
Measure = Callable[[FloatArray], FloatArray]
"""Image weights (b, images) -> a weighted statistic (b, neurons), the same for weights of another scale.

Weights are multiples of 1/4: a sum of counts, divided last, is exact, so that neurons that tie stay tied.
"""
_Pair = tuple[str, str, BoolArray]  # names of x and y, neurons kept

MIN_RELIABILITY = 0.3
OVERSAMPLING = 4  # draws per group in a resample: see split_half_correlations
RESAMPLE_CHUNK = 256
PERMUTATION_CHUNK = 2**17  # ranks held at once: they fit into the cache


@dataclass(frozen=True)
class Correlation:
    """Two measures correlated over neurons, from disjoint halves of the images; nan = undefined.

    n: neurons used. p: permutation p of spearman, two-sided, never 0. low, high: interval of spearman.
    partial: given the covariates. reliability: Spearman of a measure with itself on the other half (half
    length, no Spearman-Brown). disattenuated: spearman / sqrt(reliability_x * reliability_y), not clipped,
    nan if a reliability is below 0.3.
    """

    x: str
    y: str
    n: int
    spearman: float = math.nan
    kendall: float = math.nan
    p: float = math.nan
    low: float = math.nan
    high: float = math.nan
    partial_spearman: float = math.nan
    partial_p: float = math.nan
    reliability_x: float = math.nan
    reliability_y: float = math.nan
    disattenuated: float = math.nan


def split_half_correlations(
    measures: dict[str, Measure],
    pairs: Sequence[tuple[str, str]],
    groups: npt.NDArray[np.int64],
    covariates: FloatArray,
    *,
    seed: int,
    splits: int = 20,
    permutations: int = 9_999,
    resamples: int = 999,
) -> list[Correlation]:
    """Correlate pairs of measures over neurons, x from one half of the images and y from the other.

    groups: (images,), numbers; images of the same number go into the same half, as a measure may take one
    together with the other. covariates: (neurons, c), finite; constant or collinear columns count for
    nothing.

    All correlations are averages of Fisher z over random splits, both ways (2 * splits pairings); p is that
    of the same average, the neurons of y permuted alike in all pairings (partial: Freedman-Lane on rank
    residuals). Instead of a clip, z is atanh of (1 - 6 / (n^3 - n)) rho, half the smallest step of Spearman's
    rho below 1, and this is undone in the end: a rho of 1 weighs finitely, and an average of ones is 1.

    A neuron is left out of a pair if x or y is not finite on all images or on one of the halves. With fewer
    than 3 neurons or 2 groups, or a measure constant in a half, the pair is undefined.

    The 95 % interval is for the mean of that average over new data sets of the same size, on this network:
    not for a correlation without noise. It is Fisher z plus or minus normal quantiles of a bootstrap standard
    error. One multinomial vector of the groups' weights serves all splits: no image sits in both halves, and
    the splits share their noise. A plain resample adds the noise of the images a second time: z* is
    attenuated (basic and percentile intervals are off centre) and varies too little, as rho is a ratio.
    Resamples of four times as many draws add a quarter of the noise; their standard deviation counts double
    (m-out-of-n bootstrap). A resample with a constant or non-finite measure is dropped; no interval if that
    befalls more than half.

    Raises ValueError for covariates that are not finite or not one row per neuron.
    """
    if not np.isfinite(covariates).all():
        raise ValueError("the covariates are not finite")
    numbers, member = np.unique(groups, return_inverse=True)
    if len(numbers) < 2:
        return [Correlation(x, y, len(covariates)) for x, y in pairs]
    in_half = np.tile(np.arange(len(numbers)) < len(numbers) // 2, (splits, 1))
    first = np.random.default_rng([seed, 0]).permuted(in_half, axis=1)[:, member]
    used = {name: measures[name] for pair in pairs for name in pair}
    values = _evaluate(used, np.concatenate([np.ones((1, len(member))), first, ~first]))
    if any(value.shape[1] != len(covariates) for value in values.values()):
        raise ValueError(f"the covariates have {len(covariates)} rows, not one per neuron")
    finite = {name: np.isfinite(value).all(axis=0) for name, value in values.items()}
    tasks: list[_Pair] = [(x, y, np.logical_and(finite[x], finite[y])) for x, y in pairs]
    halves = {name: value[1:].reshape(2, splits, -1) for name, value in values.items()}
    ranks = _pair_ranks(halves, tasks)
    defined = [i for i, sides in enumerate(ranks) if _is_defined(*sides)]
    resampled = _bootstrap(used, [tasks[i] for i in defined], first, member, resamples, seed)

    orders: dict[int, IntArray] = {}
    results = [Correlation(x, y, int(kept.sum())) for x, y, kept in tasks]
    for i, z_resampled in zip(defined, resampled, strict=True):
        x, y = ranks[i]
        n = x.shape[-1]
        if n not in orders:
            identity = np.tile(np.arange(n, dtype=np.int32), (permutations, 1))
            orders[n] = np.random.default_rng([seed, 2, n]).permuted(identity, axis=1)
        z, p = _permutation_p(x, y, np.full((n, 1), n**-0.5), orders[n])
        columns = np.column_stack([np.ones(n), stats.rankdata(covariates[tasks[i][2]], axis=0)])
        partial_z, partial_p = _permutation_p(x, y, linalg.orth(columns), orders[n])
        low, high = _interval(z, z_resampled, n)
        reliability_x, reliability_y = (_rho(_fisher_z(_dots(*side), n).mean(), n) for side in (x, y))
        reliable = min(reliability_x, reliability_y) >= MIN_RELIABILITY
        spearman = _rho(z, n)
        results[i] = Correlation(
            *pairs[i],
            n=n,
            spearman=spearman,
            kendall=_kendall(x, y),
            p=p,
            low=low,
            high=high,
            partial_spearman=_rho(partial_z, n),
            partial_p=partial_p,
            reliability_x=reliability_x,
            reliability_y=reliability_y,
            disattenuated=spearman / math.sqrt(reliability_x * reliability_y) if reliable else math.nan,
        )
    return results


def _evaluate(measures: dict[str, Measure], weights: FloatArray) -> dict[str, FloatArray]:
    # A ratio may be undefined on some weights; the caller looks for what is not finite.
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: measure(weights) for name, measure in measures.items()}


def _pair_ranks(values: dict[str, FloatArray], pairs: Sequence[_Pair]) -> list[tuple[FloatArray, FloatArray]]:
    """Ranks of x and y, (2 halves, b, neurons kept), each row of mean 0 and length 1, or nan."""
    done: dict[tuple[str, bytes], FloatArray] = {}

    def ranks(name: str, mask: BoolArray) -> FloatArray:
        key = name, mask.tobytes()
        if key not in done:
            rows = values[name][..., mask]
            finite = np.isfinite(rows).all(axis=-1, keepdims=True)
            centred = stats.rankdata(rows, axis=-1) - (rows.shape[-1] + 1) / 2
            done[key] = _unit(np.where(finite, centred, math.nan))
        return done[key]

    return [(ranks(x, mask), ranks(y, mask)) for x, y, mask in pairs]


def _is_defined(x: FloatArray, y: FloatArray) -> bool:
    return x.shape[-1] >= 3 and bool(np.isfinite(x).all() and np.isfinite(y).all())


def _unit(rows: FloatArray) -> FloatArray:
    """Rows at length 1; nan where nothing but rounding is left of them."""
    length = np.sqrt(_dots(rows, rows))
    return rows / np.where(length > 1e-6, length, math.nan)[..., None]


def _dots(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("...n,...n->...", a, b))


def _fisher_z(rho: FloatArray, n: int) -> FloatArray:
    return np.asarray(np.arctanh((1 - 6 / (n**3 - n)) * rho))


def _rho(z: float, n: int) -> float:
    return math.tanh(z) / (1 - 6 / (n**3 - n))


def _bootstrap(
    measures: dict[str, Measure],
    pairs: Sequence[_Pair],
    first: BoolArray,
    member: npt.NDArray[np.int64],
    resamples: int,
    seed: int,
) -> FloatArray:
    """Average Fisher z under resampled weights of groups, (pairs, resamples); nan where undefined."""
    splits, groups = len(first), int(member.max()) + 1
    rng = np.random.default_rng([seed, 1])
    total = np.zeros((len(pairs), resamples))
    for start in range(0, resamples, RESAMPLE_CHUNK):
        b = min(RESAMPLE_CHUNK, resamples - start)
        drawn = rng.multinomial(OVERSAMPLING * groups, np.full(groups, 1 / groups), size=b)
        weights = drawn[:, member] / OVERSAMPLING
        for half in first:
            halves = _evaluate(measures, np.concatenate([weights * half, weights * ~half]))
            values = {name: value.reshape(2, b, -1) for name, value in halves.items()}
            for z, (x, y) in zip(total, _pair_ranks(values, pairs), strict=True):
                z[start : start + b] += _fisher_z(_dots(x, y[::-1]), x.shape[-1]).sum(axis=0)
    total /= 2 * splits
    return total


def _interval(z: float, resampled: FloatArray, n: int) -> tuple[float, float]:
    usable = resampled[np.isfinite(resampled)]
    if usable.size < max(2, resampled.size / 2):
        return math.nan, math.nan
    half_width = stats.norm.ppf(0.975) * math.sqrt(OVERSAMPLING) * usable.std(ddof=1)
    return max(_rho(z - half_width, n), -1.0), min(_rho(z + half_width, n), 1.0)


def _permutation_p(x: FloatArray, y: FloatArray, basis: FloatArray, orders: IntArray) -> tuple[float, float]:
    """Average Fisher z of the residuals of x and y off an orthonormal basis, and its Freedman-Lane p.

    x, y: (2 halves, splits, n) unit ranks; basis: (n, q), spans the constant; orders: (permutations, n).
    """
    n, q = basis.shape
    x, y = (_unit(side - (side @ basis) @ basis.T).reshape(-1, n) for side in (x, y[::-1]))
    if n - q < 2 or not _is_defined(x, y):
        return math.nan, math.nan
    z = float(_fisher_z(_dots(x, y), n).mean())
    x, y = x.T, np.ascontiguousarray(y.T)
    extreme = 0
    rows = max(1, PERMUTATION_CHUNK // x.size)
    for start in range(0, len(orders), rows):
        permuted = y[orders[start : start + rows]]
        # The fitted part that Freedman-Lane adds back is in the basis' span and leaves the residuals again.
        squared_length = 1 - ((basis.T @ permuted) ** 2).sum(axis=1)
        rho = np.einsum("nk,pnk->pk", x, permuted) / np.sqrt(np.maximum(squared_length, 1e-12))
        z_permuted = _fisher_z(np.clip(rho, -1.0, 1.0), n).mean(axis=1)
        # Permutations that give the same statistic differ by rounding.
        extreme += int(np.count_nonzero(np.abs(z_permuted) >= abs(z) - 1e-9))
    return z, (1 + extreme) / (1 + len(orders))


def _kendall(x: FloatArray, y: FloatArray) -> float:
    n = x.shape[-1]
    rows = zip(x.reshape(-1, n), y[::-1].reshape(-1, n), strict=True)
    # "asymptotic" spares the exact p, which is not used.
    taus = np.array([stats.kendalltau(a, b, method="asymptotic").statistic for a, b in rows])
    return _rho(float(_fisher_z(taus, n).mean()), n)
