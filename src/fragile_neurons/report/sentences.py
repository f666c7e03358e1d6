"""The findings of a run in words, written from its numbers."""

from __future__ import annotations

from typing import Any

from fragile_neurons.analysis.verdicts import FEWEST

SIGNIFICANT = 0.05


def accuracy(found: dict[str, Any]) -> str:
    """99.10 % [98.59, 99.43]"""
    low, high = (100 * bound for bound in found["ci95"])
    return f"{100 * found['value']:.1f} % [{low:.1f}, {high:.1f}]"


def points(fraction: float | None) -> str:
    """A difference of accuracies in percentage points, signed."""
    return "–" if fraction is None else f"{100 * fraction:+.2f}"


def number(value: float | None, digits: int = 2) -> str:
    """A signed number, or a dash where there is none."""
    return "–" if value is None else f"{value:+.{digits}f}"


def headline(pair: dict[str, Any]) -> str:
    """One headline correlation as a sentence with its interval, p and n."""
    asked = {
        "share": "fragility (clean drop) against targeting (share of the disturbance)",
        "excess": "fragility (margin drop) against targeting beyond another image's attack (excess)",
    }[pair["y"]]
    start = f"epsilon {pair['epsilon']}, {pair['layer']}: {asked}"
    if pair["spearman"] is None:
        return f"{start}: undefined for these {pair['n']} neurons (a measure is constant or empty)."
    interval = "" if pair["ci95"][0] is None else f" [{pair['ci95'][0]:+.2f}, {pair['ci95'][1]:+.2f}]"
    verdict = "no correlation shown"
    if pair["adjusted_p"] <= SIGNIFICANT:
        verdict = (
            "the attack strikes the fragile neurons" if pair["spearman"] > 0 else "the attack avoids them"
        )
    found = f"Spearman {pair['spearman']:+.2f}{interval}, p {pair['adjusted_p']:.2g} (Holm)"
    sentence = f"{start}: {found}, n = {pair['n']} neurons: {verdict}."
    if pair["y"] == "excess" and pair["partial_spearman"] is not None:
        partial = f"{pair['partial_spearman']:+.2f}, p {pair['partial_p']:.2g}"
        sentence += f" Given weight norm and activation energy: {partial}."
    return sentence


def verdicts(row: dict[str, Any]) -> str:
    """3 fragile, 20 robust, 9 undecided; 1 significant but small"""
    counts = [f"{count} {verdict}" for verdict, count in row["verdicts"].items() if count]
    notes = [f"{row['small']} significant but small"] if row["small"] else []
    for which in ("right", "wrong"):
        if row["epsilon"] is not None and row[which] < FEWEST:
            notes.append(f"only {row[which]} images {which} at baseline, a verdict needs {FEWEST}")
    return "; ".join([", ".join(counts), *notes])


def condition(row: dict[str, Any]) -> str:
    """clean, or FGSM 8/255"""
    return "clean" if row["epsilon"] is None else f"FGSM {row['epsilon']}"
