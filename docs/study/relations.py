"""The tables of how fragility, targeting and carrying the attack go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from cells import LARGEST_RHO, rank_correlation, share, table
from kept import Column, Found, Kept, can_be_asked, runs
from scipy.stats import permutation_test, t

from fragile_neurons.report.sentences import number, percent
from fragile_neurons.split_half import MIN_RELIABILITY
from fragile_neurons.stats import holm

HEADLINES = {
    ("clean_drop", "share"): "clean drop with share: the paper's question",
    ("margin_drop", "excess"): "margin drop with excess: beyond another image's attack",
}
FRAGILITIES, TARGETINGS = ("clean_drop", "margin_drop"), ("share", "noise_excess", "excess")
CONTROLS = ("share", "swap_share", "noise_share", "noise_excess", "excess", "weight_norm")
WORDS = {
    "clean_drop": "clean drop",
    "margin_drop": "margin drop",
    "rescue": "rescue",
    "share": "share",
    "swap_share": "share under another image's attack",
    "noise_share": "share under noise",
    "noise_excess": "excess over noise",
    "excess": "excess over another image's attack",
    "weight_norm": "weight norm",
}


def correlations() -> str:
    rows = []
    for x, y in HEADLINES:
        again = corrected(x, y)
        for run in runs("analyze", layer="first"):
            for pair in run.summary["correlation"]:
                if (pair["x"], pair["y"]) == (x, y):
                    reliability = [_reliable(pair["reliability_x"]), _reliable(pair["reliability_y"])]
                    rho, p, given = _relation(pair)
                    p_again = again.get((run.name, pair["epsilon"]))
                    ps = [p, "–" if p_again is None else f"{p_again:.2g}"]
                    cells = [run.name, pair["epsilon"], str(pair["n"]), rho, *ps, given, *reliability]
                    rows.append([f"{WORDS[x]} x {WORDS[y]}", *cells])
    header = ["question", "network", "epsilon", "neurons", "rho", "p (Holm)", "over networks"]
    return table([*header, "given norm and energy", "reliability of fragility", "of targeting"], rows)


def _relation(pair: Found) -> list[str]:
    """Spearman's rho with its interval, its p, and both given weight norm and activation energy."""
    if pair["spearman"] is None:
        return ["–", "–", "–"]
    low, high = pair["ci95"]
    interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    given = pair["partial_spearman"]
    partial = "–" if given is None else f"{given:+.2f} (p {pair['partial_p']:.2g})"
    return [f"{number(pair['spearman'])}{interval}", f"{pair['adjusted_p']:.2g}", partial]


def _reliable(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= MIN_RELIABILITY else f"{value:.2f} (too low)"


def asked(x: str, y: str) -> Iterator[tuple[Kept, Found]]:
    """The networks where this can be asked, each with its relation at the largest epsilon."""
    for run in runs("analyze", layer="first"):
        for pair in run.summary["correlation"]:
            here = (pair["x"], pair["y"], pair["epsilon"]) == (x, y, run.largest_epsilon)
            if here and can_be_asked(pair):
                yield run, pair


def corrected(x: str, y: str) -> dict[tuple[str, str], float]:
    """By network and its largest epsilon: p corrected by Holm over the networks where this can be asked."""
    found = {(run.name, pair["epsilon"]): pair["adjusted_p"] for run, pair in asked(x, y)}
    return dict(zip(found, holm(np.array([*found.values()])).tolist(), strict=True))


@dataclass(frozen=True)
class Mean:
    """The mean rho over networks by Fisher's z, with Student's interval, and that of another network's rho.

    p: of so large a mean if each network's sign were drawn at random, exact; of k networks at least 2 / 2^k.
    """

    rho: float
    low: float
    high: float
    other: tuple[float, float]
    p: float

    @classmethod
    def of(cls, zs: Column) -> Mean:
        """zs: Fisher's z of each network."""
        middle, error = zs.mean(), zs.std(ddof=1) / np.sqrt(len(zs))
        reach = t.ppf(0.975, len(zs) - 1) * error
        wide = reach * np.sqrt(len(zs) + 1)
        signs = permutation_test(
            (zs,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        rho, low, high, *other = np.tanh(middle + np.array([0, -reach, reach, -wide, wide])).tolist()
        return cls(rho, low, high, tuple(other), float(signs.pvalue))

    @property
    def cells(self) -> list[str]:
        low, high = self.other
        shown = f"{self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return [shown, f"{low:+.2f} to {high:+.2f}", f"{self.p:.2g}"]


@dataclass(frozen=True)
class OverNetworks:
    """So many networks, trainings of one counting as one; the mean rho over them, raw and partial."""

    networks: int
    raw: Mean
    given: Mean


def over_networks(x: str, y: str) -> OverNetworks | None:
    """Of those where it can be asked; None of fewer than two."""
    trainings: dict[tuple[str, str], list[Column]] = defaultdict(list)
    for run, pair in asked(x, y):
        if pair["partial_spearman"] is not None:
            rhos = np.clip([pair["spearman"], pair["partial_spearman"]], -LARGEST_RHO, LARGEST_RHO)
            trainings[run.network].append(np.arctanh(rhos))
    if len(trainings) < 2:
        return None
    zs = np.array([np.mean(one, axis=0) for one in trainings.values()])
    return OverNetworks(len(zs), Mean.of(zs[:, 0]), Mean.of(zs[:, 1]))


def means_over_networks() -> str:
    rows = []
    for x, y in product(FRAGILITIES, TARGETINGS):
        if found := over_networks(x, y):
            cells = [str(found.networks), *found.raw.cells, *found.given.cells]
            rows.append([f"{WORDS[x]} x {WORDS[y]}", *cells])
    header = ["question", "networks", "mean rho", "of another network", "p"]
    return table([*header, "given norm and energy: mean", "of another network", "p"], rows)


def explored() -> str:
    """Both measures of fragility with targeting raw, beyond noise, beyond another image's attack."""
    rows = []
    for run in runs("analyze", layer="first"):
        pairs = {
            (pair["x"], pair["y"]): pair
            for pair in run.summary["correlation"]
            if pair["epsilon"] == run.largest_epsilon
        }
        for y in TARGETINGS:
            values = run.column(y)
            known = values[~np.isnan(values)]
            extremes = f"{100 * known.min():+.2f} to {100 * known.max():+.2f} %" if len(known) else "–"
            both = [pairs["clean_drop", y], pairs["margin_drop", y]]
            cells = [WORDS[y], extremes, _reliable(both[0]["reliability_y"])]
            rows.append([run.name, *cells, *_relation(both[0]), *_relation(both[1])])
    header = ["network", "targeting", "lowest to highest neuron", "reliability"]
    for x in (WORDS[name] for name in FRAGILITIES):
        header += [f"{x}: rho", "p", "given norm and energy"]
    return table(header, rows)


def precisions() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        for one in run.summary["precision"]:
            k, n = one["fragile"], one["neurons"]
            if one["precision"] is None:
                cells = ["–", "–", "–"]
            else:
                met = share(round(k * one["precision"]), k)
                cells = [met, percent(k / n), f"{one['p']:.2g}"]
            rows.append([run.name, one["epsilon"], f"{k} of {n}", *cells])
    return table(["network", "epsilon", "fragile", "of as many most targeted", "by chance", "p"], rows)


def controls() -> str:
    """What else goes with the clean drop and with rescue: the controls, neuron by neuron."""
    rows = []
    for column in ("clean_drop", "rescue"):
        for run in runs("analyze", layer="first"):
            cells = [rank_correlation(run.column(name), run.column(column)) for name in CONTROLS]
            rows.append([WORDS[column], run.name, run.largest_epsilon, *cells])
    return table(["of", "network", "epsilon", *(WORDS[name] for name in CONTROLS)], rows)
