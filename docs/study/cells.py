"""What the tables of the study are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kept import Column
from scipy.stats import permutation_test, rankdata

from fragile_neurons.report.sentences import percent
from fragile_neurons.stats import wilson

PERMUTATIONS = 9_999
NORMAL = 1.959964  # 97.5 % quantile
FEWEST, LARGEST_RHO = 4, 0.999999  # neurons, and the largest correlation, that an interval can be had of


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or that there is nothing yet to put into it."""
    if not rows:
        return "No run has finished yet."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(count: int, n: int) -> str:
    """A share with its Wilson interval."""
    low, high = wilson(count, n)
    return f"{percent(count / n)} [{100 * low:.1f}, {100 * high:.1f}]"


def rank_correlation(values: Column, others: Column) -> str:
    """Spearman's rho over neurons: interval for other neurons, p for neurons in another order.

    Source of the interval: Bonett and Wright 2000.
    """
    known = ~np.isnan(values + others)
    values, others = values[known], others[known]
    if len(values) < FEWEST or not np.ptp(values) or not np.ptp(others):
        return "–"
    one, other = (ranks - ranks.mean() for ranks in (rankdata(values), rankdata(others)))
    other /= np.linalg.norm(one) * np.linalg.norm(other)
    found = permutation_test(
        (one,),
        lambda moved, axis: (moved * other).sum(axis=axis),
        vectorized=True,
        permutation_type="pairings",
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    rho = float(found.statistic)
    reach = NORMAL * np.sqrt((1 + rho**2 / 2) / (len(values) - 3))
    middle = np.arctanh(np.clip(rho, -LARGEST_RHO, LARGEST_RHO))
    low, high = np.tanh(middle - reach), np.tanh(middle + reach)
    return f"{rho:+.2f} [{low:+.2f}, {high:+.2f}] (p {found.pvalue:.2g})"
