"""Intervals and tests: numbers in, numbers out."""

import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
FEWEST_FLIPS = 20  # in a sample, for a normal approximation
SMALLEST_LOG_P, LARGEST_LOG_P = -60.0, -1e-9


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided McNemar p; 1 without a discordant pair."""
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def tango(lost: int, gained: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
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
    lost: FloatArray, gained: FloatArray, n: int, heaviest: float
) -> tuple[float, float, float]:
    """p, and the 95 % interval of (lost - gained) / n, from the weights of those that a sample has met.

    The images vary and the sample does: each weight, one over a probability, stands for a flip and for those
    not drawn. From 20 flips on a z-test; below it bounds that hold for few, those of weighted Poisson counts
    (Fay and Feuer, Statistics in Medicine 16 (1997) 791-801), lost and gained put together by their squares
    (Zou and Donner, 27 (2008) 1693-1702). heaviest: the largest weight that a flip could have had.
    """
    total, met = float(lost.sum() - gained.sum()), len(lost) + len(gained)
    if met >= FEWEST_FLIPS:
        variance = float((lost**2).sum() + (gained**2).sum()) - total**2 / n
        error = math.sqrt(max(variance, 0.0))
        half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
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

    p, (low, high) = 1.0, bounds(1 - CONFIDENCE)
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
