"""The tables of how fragility, targeting and carrying the attack go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from cells import MOST, share, table, tied
from kept import Column, Found, Kept, can_be_asked, runs
from scipy.stats import ttest_1samp

from fragile_neurons.report.sentences import number, percent
from fragile_neurons.split_half import MIN_RELIABILITY
from fragile_neurons.stats import holm

HEADLINES = (("clean_drop", "share"), ("margin_drop", "excess"))
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
        corrected = _corrected(x, y)
        for run in runs("analyze", layer="first"):
            for pair in run.summary["correlation"]:
                if (pair["x"], pair["y"]) == (x, y):
                    reliability = [_reliable(pair["reliability_x"]), _reliable(pair["reliability_y"])]
                    rho, p, given = _relation(pair)
                    again = corrected.get((run.name, pair["epsilon"]))
                    ps = [p, "–" if again is None else f"{again:.2g}"]
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


def _asked(x: str, y: str) -> Iterator[tuple[Kept, Found]]:
    """The networks where this can be asked, each with its relation at the largest epsilon."""
    for run in runs("analyze", layer="first"):
        for pair in run.summary["correlation"]:
            here = (pair["x"], pair["y"], pair["epsilon"]) == (x, y, run.spec["epsilons"][-1])
            if here and can_be_asked(pair):
                yield run, pair


def _corrected(x: str, y: str) -> dict[tuple[str, str], float]:
    """By network and its largest epsilon: p corrected by Holm over the networks where this can be asked."""
    asked = {(run.name, pair["epsilon"]): pair["adjusted_p"] for run, pair in _asked(x, y)}
    return dict(zip(asked, holm(np.array([*asked.values()])).tolist(), strict=True))


@dataclass(frozen=True)
class Mean:
    """The mean rho over networks, by Fisher's z, with Student's interval and p."""

    rho: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, fisher: Column) -> Mean:
        """fisher: z of each network."""
        test = ttest_1samp(fisher, 0.0)
        rho, low, high = np.tanh([fisher.mean(), *test.confidence_interval()]).tolist()
        return cls(rho, low, high, float(test.pvalue))

    @property
    def cells(self) -> list[str]:
        return [f"{self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}]", f"{self.p:.2g}"]


def over_networks(x: str, y: str) -> tuple[int, Mean, Mean] | None:
    """How many networks, trainings of one counting as one; the mean rho over them, raw and partial.

    None of fewer than two.
    """
    trainings: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for run, pair in _asked(x, y):
        rhos = [pair["spearman"], pair["partial_spearman"]]
        trainings[run.network].append(np.arctanh(np.clip(rhos, -MOST, MOST)).tolist())
    if len(trainings) < 2:
        return None
    fisher = np.array([np.mean(one, axis=0) for one in trainings.values()])
    return len(fisher), Mean.of(fisher[:, 0]), Mean.of(fisher[:, 1])


def together() -> str:
    rows = []
    for x in ("clean_drop", "margin_drop"):
        for y in ("share", "noise_excess", "excess"):
            if found := over_networks(x, y):
                networks, raw, given = found
                rows.append([f"{WORDS[x]} x {WORDS[y]}", str(networks), *raw.cells, *given.cells])
    header = ["question", "networks", "mean rho", "p", "mean rho given norm and energy", "p"]
    return table(header, rows)


def explored() -> str:
    """Both measures of fragility with targeting raw, beyond noise, beyond another image's attack."""
    rows = []
    for run in runs("analyze", layer="first"):
        pairs = {
            (pair["x"], pair["y"]): pair
            for pair in run.summary["correlation"]
            if pair["epsilon"] == run.spec["epsilons"][-1]
        }
        for y in ("share", "noise_excess", "excess"):
            values = run.column(y)
            known = values[~np.isnan(values)]
            extremes = f"{100 * known.min():+.2f} to {100 * known.max():+.2f} %" if len(known) else "–"
            both = [pairs["clean_drop", y], pairs["margin_drop", y]]
            cells = [WORDS[y], extremes, _reliable(both[0]["reliability_y"])]
            rows.append([run.name, *cells, *_relation(both[0]), *_relation(both[1])])
    header = ["network", "targeting", "lowest to highest neuron", "reliability"]
    for x in ("clean drop", "margin drop"):
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


def beside() -> str:
    """What else goes with the clean drop and with rescue: the controls, neuron by neuron."""
    rows = []
    for column in ("clean_drop", "rescue"):
        for run in runs("analyze", layer="first"):
            cells = [tied(run.column(name), run.column(column)) for name in CONTROLS]
            rows.append([WORDS[column], run.name, run.spec["epsilons"][-1], *cells])
    return table(["of", "network", "epsilon", *(WORDS[name] for name in CONTROLS)], rows)
