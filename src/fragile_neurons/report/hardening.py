"""What `harden` found, as rows of texts: for a terminal and for summary.md."""

from __future__ import annotations

from typing import Any

from fragile_neurons.attacks.autoattack import INSTALL
from fragile_neurons.hardening.observe import APGD, CLEAN, FGSM, PGD, SHORT_PGD
from fragile_neurons.hardening.trials import SHUFFLED
from fragile_neurons.report.sentences import accuracy, points

Found = dict[str, Any]
ATTACKS = {FGSM: "FGSM", PGD: "PGD-20 x 5", APGD: "APGD-CE + T", SHORT_PGD: "PGD-10"}

HEADER = ["attack", "epsilon", "original", "hardened", "difference, pp", "n"]
OTHERS = ["network", "numbers", "seconds", "clean", "PGD-20 x 5", "hardened - it, pp"]


def gained(hardening: Found) -> dict[str, Found]:
    """By attack, clean among them: the differences at the epsilon that was hardened against."""
    here = ("0", hardening["epsilon"])
    return {row["attack"]: row for row in hardening["differences"] if row["epsilon"] in here}


def controls(hardening: Found) -> dict[str, Found]:
    """By network: the accuracies under the attack of the controls, PGD-10; none if there are no controls."""
    return {row["network"]: row for row in hardening["accuracies"] if row["attack"] == SHORT_PGD}


def difference_rows(found: Found) -> list[list[str]]:
    """A row per attack and epsilon: before, after, and the paired difference with its interval."""
    rows = []
    for row in found["hardening"]["differences"]:
        before, after = (_at(found, name, row["attack"], row["epsilon"]) for name in ("original", "hardened"))
        if row["attack"] != SHORT_PGD and before and after:
            attack = "none" if row["attack"] == CLEAN else ATTACKS[row["attack"]]
            cells = [attack, row["epsilon"], accuracy(before), accuracy(after), difference(row)]
            rows.append([*cells, f"{row['n']:,}"])
    return rows


def difference(row: Found) -> str:
    """+20.4 [+18.6, +22.1]"""
    value, low, high = (100 * number for number in (row["value"], *row["ci95"]))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def other_rows(found: Found) -> list[list[str]]:
    """The hardened network beside those whose weights were fitted for the same time; PGD's differences."""
    hardening = found["hardening"]
    fits = {fit["network"]: fit for fit in hardening["fits"]}
    left = {one["network"] for one in hardening["chosen"] if not one["kept"]}
    against = {row["network"]: difference(row) for row in hardening["against"]}
    rows = []
    for name in ("original", "hardened", *(name for name in fits if name != "hardened")):
        cells = [_at(found, name, attack, epsilon) for attack, epsilon in _columns(hardening)]
        fit = fits.get(name)
        numbers = fit["numbers"] if fit else hardening["numbers"] if name == "hardened" else None
        seconds = f"{fit['seconds']:.0f}" if fit and fit["seconds"] is not None else "–"
        shown = name
        if fit and fit["diverged"]:
            shown += " (diverged)"
        elif name in left:
            shown += " (nothing helped within the budget: as it was)"
        rows.append(
            [
                shown,
                "–" if numbers is None else f"{numbers:,}",
                seconds,
                *(accuracy(cell) if cell else "–" for cell in cells),
                against.get(name, ""),
            ]
        )
    return rows


CLASSES = ["class", "original", "hardened", "n"]


def class_rows(found: Found) -> list[list[str]]:
    """A row per class: PGD-20 at the epsilon hardened against, before and after."""
    return [
        [name, accuracy(row["before"]), accuracy(row["after"]), f"{row['before']['n']:,}"]
        for name, row in found["hardening"]["per_class"].items()
    ]


TRIED = ["network", "strength", "clean on val, pp", "PGD-10 on val, pp", ""]


def tried_rows(found: Found) -> list[list[str]]:
    """A row per strength of each fit: what it costs and brings on validation images, and which was taken."""
    rows = []
    for one in found["hardening"]["chosen"]:
        fitted = one["robust"] and one["strengths"]
        for place, strength in enumerate(one["strengths"] if fitted else ()):
            robust = "–"
            if place in one["attacked"]:
                robust = points(one["robust"][1 + one["attacked"].index(place)] - one["robust"][0])
            clean = points(one["clean"][1 + place] - one["clean"][0])
            taken = "taken" if place == one["taken"] else ""
            rows.append([one["network"], f"{strength:g}", clean, robust, taken])
    return rows


def _columns(hardening: Found) -> list[tuple[str, str]]:
    return [("clean", "0"), ("pgd", hardening["epsilon"])]


def _at(found: Found, network: str, attack: str, epsilon: str, made_on: str | None = None) -> Found | None:
    for row in found["hardening"]["accuracies"]:
        place = (row["network"], row["attack"], row["epsilon"], row["made_on"])
        if place == (network, attack, epsilon, made_on or network):
            return dict(row)
    return None


def verdict(found: Found) -> str:
    """The verdict and its reason."""
    hardening = found["hardening"]
    said = f"Verdict at epsilon {hardening['epsilon']}: {hardening['verdict']} ({hardening['reason']})."
    if hardening["is_identity"]:
        said += (
            " No strength kept the budget and helped on val: the gains are all 1, the weights as they were."
        )
    return said


def described(found: Found) -> str:
    """Rule, numbers, and which images served for what."""
    one, layers, data = found["hardening"], len(found["layers"]), found["data"]
    share = 100 * one["numbers"] / one["parameters"]
    made = {
        "learned": f"fitted on {one['fitted_on']}, chosen on {one['chosen_on']}",
        "searched": f"scored and chosen on {one['chosen_on']}",
        "proportional": f"scored on {one['chosen_on']}",
    }[one["rule"]]
    return (
        f"Rule {one['rule']}, {layers} layer{'s' if layers > 1 else ''}, site {found['site']}: "
        f"{one['numbers']:,} numbers ({share:.2g} % of {one['parameters']:,} weights), gains from "
        f"{one['smallest_gain']:.2f} to {one['largest_gain']:.2f}; {made}, "
        f"judged on {data['n']:,} {data['split']} images. Budget: {points(-one['budget'])} pp clean."
    )


def control_lines(found: Found) -> list[str]:
    """Shuffled, inverted and uniform gains under PGD-10; transfer both ways; the stronger attacks."""
    epsilon, lines = found["hardening"]["epsilon"], []
    named = controls(found["hardening"])
    if named:
        shuffled = [row["value"] for name, row in named.items() if name.startswith(SHUFFLED)]
        plain = [name for name in named if not name.startswith(SHUFFLED)]
        lines.append(
            f"Controls, PGD-10 at {epsilon}, {named['hardened']['n']:,} images: "
            f"{', '.join(f'{name} {accuracy(named[name])}' for name in plain)}; the same gains on other "
            f"neurons {100 * min(shuffled):.1f} to {100 * max(shuffled):.1f} % in {len(shuffled)} draws."
        )
    onto, back = (
        _at(found, network, "pgd", epsilon, source)
        for network, source in (("hardened", "original"), ("original", "hardened"))
    )
    if onto and back:
        lines.append(
            f"Transfer, PGD at {epsilon}: of images made on the original the hardened has {accuracy(onto)} "
            f"right, of those made on the hardened the original {accuracy(back)}."
        )
    if all(row["attack"] != "apgd" for row in found["hardening"]["differences"]):
        lines.append(f"APGD was not asked: AutoAttack is not installed ({INSTALL}).")
    rises = gained(found["hardening"])[PGD]["value"] > 0
    for row in found["hardening"]["left_over"] if rises else ():
        name = ATTACKS.get(row["attack"], row["attack"])
        interval = f"[{points(row['low'])}, {points(row['high'])}]"
        lines.append(
            f"{name}: its gain minus {row['share']} of PGD's on the same images is {points(row['value'])} pp "
            f"{interval}; below 0 the gain vanishes."
        )
    return lines
