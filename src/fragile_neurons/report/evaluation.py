"""What `evaluate` found, as rows of texts: for a terminal and for summary.md."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fragile_neurons.probe import FLAGGED
from fragile_neurons.report import sentences

Found = dict[str, Any]


def accuracy_rows(found: Found) -> tuple[list[str], list[list[str]]]:
    """A header, and a row per attack: accuracy at each epsilon, passes through the network per image."""
    epsilons = list(dict.fromkeys(row["epsilon"] for row in found["robust_accuracy"]))
    cells: dict[str, list[str]] = {}
    for row in found["robust_accuracy"]:
        cells.setdefault(row["attack"], []).append(sentences.accuracy(row))
    costs = {one["attack"]: f"{one['forward']:.0f} + {one['backward']:.0f}" for one in found["cost"]}
    rows = [[_short(attack), *accuracies, costs.get(attack, "")] for attack, accuracies in cells.items()]
    for one in found["unavailable"]:
        rows.insert(-1, [one["attack"], f"not installed: {one['install']}", *[""] * len(epsilons)])
    return ["attack", *(f"epsilon {epsilon}" for epsilon in epsilons), "passes"], rows


def _short(attack: str) -> str:
    """The user's own attack without the folders of its file."""
    return attack.rpartition("/")[2]


def smallest(found: Found) -> str:
    """The median of the smallest epsilons that fool, as a sentence with its denominator."""
    one = found["smallest_fooling_epsilon"]
    of = f"of the {one['n']:,} images right clean, {one['not_fooled']:,} resisted up to {one['largest']}"
    what = "Smallest epsilon that fools (bisection with PGD of its own, an upper bound)"
    if one["median"] is None:
        return f"{what}: no median, {of}."
    grid = f"; {one['of_grid']:,} have the value of the grid at which a stronger attack fooled them"
    return f"{what}: median {one['median']:.4g}; {of}{grid if one['of_grid'] else ''}."


def check_counts(found: Found) -> str:
    """20 pass, 1 warn, 1 not applicable"""
    counts = Counter(check["status"] for check in found["checks"])
    return ", ".join(f"{counts[status]} {status}" for status in dict.fromkeys(counts))


def flagged(found: Found) -> list[str]:
    """What each check that warns or fails says, and what to do, the failed first."""
    checks = [check for status in FLAGGED for check in found["checks"] if check["status"] == status]
    return [f"{check['name']} ({check['status']}): {explained(check)}" for check in checks]


def explained(check: Found) -> str:
    """What a check means, its value where it has one, and what to do."""
    value = "" if check["value"] is None else f"{check['value']:.3g}: "
    return value + "; ".join(text for text in (check["meaning"], check["advice"]) if text)


def check_row(check: Found) -> list[str]:
    """name, status, value, the values from which it warns and fails, what it means and what to do."""
    numbers = (check[name] for name in ("value", "warn", "fail"))
    shown = ["–" if number is None else f"{number:.3g}" for number in numbers]
    meaning = "; ".join(text for text in (check["meaning"], check["advice"]) if text)
    return [check["name"], check["status"], *shown, meaning]


CHECK_HEADER = ["check", "status", "value", "warns above", "fails above", "meaning"]
PASSES_EXPLAINED = (
    "Passes: images through the network + gradients back, per image, for all epsilons together. Worst case: "
    "an image counts only if none of these attacks fools the network at this epsilon."
)
