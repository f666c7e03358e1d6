"""Intervals, tests and split-half correlations: numbers in, numbers out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg, optimize, stats

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int32]
Measure = Callable[[FloatArray], FloatArray]
"""Image weights (b, images) -> a weighted statistic (b, neurons), the same for weights of another scale.

Weights are multiples of 1/4: a sum of counts, divided last, is exact, so that neurons that tie stay tied.
"""
_Pair = tuple[str, str, BoolArray]  # names of x and y, neurons kept

MIN_RELIABILITY = 0.3
FEWEST_FLIPS = 20  # in a sample, for a normal approximation
SMALLEST_LOG_P, LARGEST_LOG_P = -60.0, -1e-9
OVERSAMPLING = 4  # draws per image in a resample: see split_half_correlations
RESAMPLE_CHUNK = 256
PERMUTATION_CHUNK = 2**17  # ranks held at once: they fit into the cache


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided McNemar p; 1 without a discordant pair."""
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def tango(lost: int, gained: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of (lost - gained) / n, paired proportions; not empty when nothing flips.

    Raises ValueError if n < 1 or lost + gained > n.
    Source: Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    if n < 1 or min(lost, gained) < 0 or lost + gained > n:
        raise ValueError(f"{lost} lost and {gained} gained do not fit into {n} pairs")
    z = float(stats.norm.ppf((1 + confidence) / 2))
    return _tango_lower(lost, gained, n, z), -_tango_lower(gained, lost, n, z)


def _tango_lower(lost: int, gained: int, n: int, z: float) -> float:
    if gained == n:
        return -1.0

    def excess(difference: float) -> float:
        # Variance under the maximum of the likelihood that has this difference.
        b = (2 * n - lost + gained) * difference - lost - gained
        c = -gained * difference * (1 - difference)
        share_gained = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = max(n * (2 * share_gained + difference * (1 - difference)), 0.0)
        # The arctangent of the score: finite where the variance is 0, as at -1 or when nothing flips.
        return math.atan2(lost - gained - n * difference, math.sqrt(variance)) - math.atan(z)

    return float(optimize.brentq(excess, -1.0, (lost - gained) / n))


def sampled_difference(
    lost: FloatArray, gained: FloatArray, n: int, heaviest: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """p, and the interval of (lost - gained) / n, from the weights of those that a sample has met.

    The images vary and the sample does: each weight, one over a probability, stands for a flip and for those
    not drawn. From 20 flips on a z-test; below it bounds that hold for few, those of weighted Poisson counts
    (Fay and Feuer, Statistics in Medicine 16 (1997) 791-801), lost and gained put together by their squares
    (Zou and Donner, 27 (2008) 1693-1702). heaviest: the largest weight that a flip could have had.
    """
    total, met = float(lost.sum() - gained.sum()), len(lost) + len(gained)
    if met >= FEWEST_FLIPS:
        variance = float((lost**2).sum() + (gained**2).sum()) - total**2 / n
        error = math.sqrt(max(variance, 0.0))
        half = float(stats.norm.ppf((1 + confidence) / 2)) * error
        p = float(2 * stats.norm.sf(abs(total) / error)) if error else 1.0
        return p, (total - half) / n, (total + half) / n

    def bounds(alpha: float) -> tuple[float, float]:
        few, many = (_weighted_count(side, heaviest, alpha) for side in (lost, gained))
        down = math.hypot(lost.sum() - few[0], many[1] - gained.sum())
        up = math.hypot(few[1] - lost.sum(), gained.sum() - many[0])
        return total - down, total + up

    def away(log_alpha: float) -> float:
        low, high = bounds(math.exp(log_alpha))
        return low if total > 0 else -high

    p, (low, high) = 1.0, bounds(1 - confidence)
    if total and away(LARGEST_LOG_P) > 0:
        p = (
            math.exp(optimize.brentq(away, SMALLEST_LOG_P, LARGEST_LOG_P))
            if away(SMALLEST_LOG_P) < 0
            else 0.0
        )
    return p, max(low / n, -1.0), min(high / n, 1.0)


def _weighted_count(weights: FloatArray, heaviest: float, alpha: float) -> tuple[float, float]:
    """Bounds of a Poisson count of which each event was met with a probability of one over its weight."""
    total, squares = float(weights.sum()), float((weights**2).sum())
    low = squares / (2 * total) * stats.chi2.ppf(alpha / 2, 2 * total**2 / squares) if total else 0.0
    more, scale = total + heaviest, squares + heaviest**2
    return float(low), float(scale / (2 * more) * stats.chi2.isf(alpha / 2, 2 * more**2 / scale))


def benjamini_hochberg(p_values: FloatArray) -> FloatArray:
    """Benjamini-Hochberg q values, in the order of the p values."""
    return np.asarray(stats.false_discovery_control(p_values, method="bh"), dtype=np.float64)


def holm(p_values: FloatArray) -> FloatArray:
    """Holm's adjusted p values, in the order of the p values, at most 1."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def top_k_precision(scores: FloatArray, is_positive: BoolArray) -> tuple[float, float]:
    """Share of the k highest scored that are positive (k = number positive); hypergeometric upper-tail p.

    Of equal scores the lower index comes first, NaN comes last; (nan, nan) if k is 0.
    """
    k = int(np.count_nonzero(is_positive))
    if k == 0:
        return math.nan, math.nan
    hits = int(np.count_nonzero(is_positive[np.argsort(-scores, kind="stable")[:k]]))
    return hits / k, float(stats.hypergeom.sf(hits - 1, len(scores), k, k))


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
    images: int,
    covariates: FloatArray,
    *,
    seed: int,
    splits: int = 20,
    permutations: int = 9_999,
    resamples: int = 999,
    confidence: float = 0.95,
) -> list[Correlation]:
    """Correlate pairs of measures over neurons, x from one half of the images and y from the other.

    covariates: (neurons, c), finite; constant or collinear columns count for nothing.

    All correlations are averages of Fisher z over random splits, both ways (2 * splits pairings); p is that
    of the same average, the neurons of y permuted alike in all pairings (partial: Freedman-Lane on rank
    residuals). Instead of a clip, z is atanh of (1 - 6 / (n^3 - n)) rho, half the smallest step of Spearman's
    rho below 1, and this is undone in the end: a rho of 1 weighs finitely, and an average of ones is 1.

    A neuron is left out of a pair if x or y is not finite on all images or on one of the halves. With fewer
    than 3 neurons, or a measure constant in a half, the pair is undefined.

    The interval is for the mean of that average over new data sets of the same size, on this network: not for
    a correlation without noise. It is Fisher z plus or minus normal quantiles of a bootstrap standard error.
    One multinomial vector of image weights serves all splits: no image sits in both halves, and the splits
    share their noise. A plain resample adds the noise of the images a second time: z* is attenuated (basic
    and percentile intervals are off centre) and varies too little, as rho is a ratio. Resamples of 4 * images
    draws add a quarter of the noise; their standard deviation counts double (m-out-of-n bootstrap). A
    resample with a constant or non-finite measure is dropped; no interval if that befalls more than half.

    Raises ValueError for fewer than 2 images or covariates that are not finite or not one row per neuron.
    """
    if images < 2 or not np.isfinite(covariates).all():
        raise ValueError(f"need 2 images or more (got {images}) and finite covariates")
    in_half = np.tile(np.arange(images) < images // 2, (splits, 1))
    first = np.random.default_rng([seed, 0]).permuted(in_half, axis=1)
    used = {name: measures[name] for pair in pairs for name in pair}
    values = _evaluate(used, np.concatenate([np.ones((1, images)), first, ~first]))
    if any(value.shape[1] != len(covariates) for value in values.values()):
        raise ValueError(f"the covariates have {len(covariates)} rows, not one per neuron")
    finite = {name: np.isfinite(value).all(axis=0) for name, value in values.items()}
    tasks: list[_Pair] = [(x, y, np.logical_and(finite[x], finite[y])) for x, y in pairs]
    halves = {name: value[1:].reshape(2, splits, -1) for name, value in values.items()}
    ranks = _pair_ranks(halves, tasks)
    defined = [i for i, sides in enumerate(ranks) if _is_defined(*sides)]
    resampled = _bootstrap(used, [tasks[i] for i in defined], first, resamples, seed)

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
        low, high = _interval(z, z_resampled, n, confidence)
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
    measures: dict[str, Measure], pairs: Sequence[_Pair], first: BoolArray, resamples: int, seed: int
) -> FloatArray:
    """Average Fisher z under resampled image weights, (pairs, resamples); nan where undefined."""
    splits, images = first.shape
    rng = np.random.default_rng([seed, 1])
    total = np.zeros((len(pairs), resamples))
    for start in range(0, resamples, RESAMPLE_CHUNK):
        b = min(RESAMPLE_CHUNK, resamples - start)
        weights = rng.multinomial(OVERSAMPLING * images, np.full(images, 1 / images), size=b) / OVERSAMPLING
        for half in first:
            halves = _evaluate(measures, np.concatenate([weights * half, weights * ~half]))
            values = {name: value.reshape(2, b, -1) for name, value in halves.items()}
            for z, (x, y) in zip(total, _pair_ranks(values, pairs), strict=True):
                z[start : start + b] += _fisher_z(_dots(x, y[::-1]), x.shape[-1]).sum(axis=0)
    total /= 2 * splits
    return total


def _interval(z: float, resampled: FloatArray, n: int, confidence: float) -> tuple[float, float]:
    usable = resampled[np.isfinite(resampled)]
    if usable.size < max(2, resampled.size / 2):
        return math.nan, math.nan
    half_width = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(OVERSAMPLING) * usable.std(ddof=1)
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
