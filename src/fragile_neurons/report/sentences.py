"""The findings of a run in words, written from its numbers."""

from __future__ import annotations

from typing import Any

from fragile_neurons.analysis.verdicts import FEWEST, SIGNIFICANT
from fragile_neurons.split_half import MIN_RELIABILITY

MOST_LAYERS = 3  # named in one sentence

HEADLINES_EXPLAINED = (
    "Share: of the layer's disturbance by FGSM, the paper's question. Excess: beyond what another image's "
    "attack does to the same neuron. Fragility and targeting come from disjoint halves of the images. The "
    "interval is for new images on this network; p (Holm within the layer) is for neurons in another order: "
    "a relation can be steady over images and still be chance among so few neurons."
)


def accuracy(found: dict[str, Any]) -> str:
    """99.1 % [98.6, 99.4]"""
    low, high = (100 * bound for bound in found["ci95"])
    return f"{100 * found['value']:.1f} % [{low:.1f}, {high:.1f}]"


def points(fraction: float | None) -> str:
    """A difference of accuracies in percentage points, signed."""
    return "–" if fraction is None else f"{100 * fraction:+.2f}"


def number(value: float | None, digits: int = 2) -> str:
    """A signed number, or a dash where there is none."""
    return "–" if value is None else f"{value:+.{digits}f}"


def percent(share: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def sweep(found: dict[str, Any]) -> str:
    """Which way the sweep took, and why."""
    taken = found["spec"]["found"]
    said = f"Sweep: {taken['sweep']} ({taken['sweep_reason']}), in {found['spec']['dtype']}."
    errors = [
        row["largest_sampling_se"] for row in found["dropout"] if row["largest_sampling_se"] is not None
    ]
    if errors:
        asked, largest = 100 * found["spec"]["standard_error"], 100 * max(filter(None, errors), default=0)
        said += (
            " Drops, lost and gained are estimates from a sample of images for each neuron, with standard "
            f"errors of at most {largest:.2f} pp (asked for: {asked:g} pp)."
        )
    return said


def patching(found: dict[str, Any]) -> str:
    """Which neuron carries most of the strongest attack, with its denominator and interval."""
    rows = [row for row in found["patching"] if row["epsilon"] == found["spec"]["epsilons"][-1]]
    said = []
    for row in rows:
        best = row["most_rescuing"]
        if best is not None:
            low, high = (100 * bound for bound in best["ci95"])
            said.append(
                f"{row['layer']}:{best['channel']} alone rescues {percent(best['rescue'])} "
                f"[{low:.1f}, {high:.1f}] of {row['fooled']:,} fooled images"
            )
    explained = (
        "Rescue: of the fooled images, those right again when the neuron alone has its clean map (named is "
        "the highest of the layer; its interval is not corrected for that)."
    )
    if not said:
        return f"{explained} No image is fooled, or no layer is called only once."
    return f"{explained} FGSM {rows[0]['epsilon']}: {'; '.join(said[:MOST_LAYERS])}."


def cumulative(found: dict[str, Any]) -> str:
    """What the largest group dropped of a layer's neurons is worth, by order, clean."""
    rows = [row for row in found["cumulative"] if row["epsilon"] is None]
    last = {row["layer"]: row for row in rows}  # the largest step of each layer
    said = []
    for row in list(last.values())[:MOST_LAYERS]:
        by_order = [
            f"{accuracy(row[order])} in order of {order}"
            for order in ("fragility", "targeting")
            if order in row
        ]
        chance = row["random"]
        spread = f"[{percent(chance['lowest'])} to {percent(chance['highest'])} in {chance['draws']} draws]"
        said.append(
            f"{row['layer']} without {row['step']} neurons: {', '.join(by_order)}, "
            f"{percent(chance['value'])} at random {spread}"
        )
    n = next(iter(last.values()))["fragility"]["n"]
    return (
        f"Dropped one after another, {n:,} clean images, each tried with the order of the other half of the "
        f"images: {'; '.join(said)}."
    )


def headline(pair: dict[str, Any]) -> str:
    """One headline correlation as a sentence with its interval, p and n."""
    asked = {"share": "clean drop with share", "excess": "margin drop with excess"}[pair["y"]]
    start = f"FGSM {pair['epsilon']}, {pair['layer']}, {asked}"
    if pair["spearman"] is None:
        return f"{start}: undefined, {pair['n']} neurons have both; too few images, or a measure is constant."
    interval = "" if pair["ci95"][0] is None else f" [{pair['ci95'][0]:+.2f}, {pair['ci95'][1]:+.2f}]"
    found = f"Spearman {pair['spearman']:+.2f}{interval}, p {pair['adjusted_p']:.2g} (Holm)"
    sentence = f"{start}: {found}, n = {pair['n']} neurons: {_meaning(pair)}."
    if pair["y"] == "excess" and pair["partial_spearman"] is not None:
        partial = f"{pair['partial_spearman']:+.2f}, p {pair['partial_p']:.2g}, not adjusted"
        sentence += f" Given weight norm and activation energy: {partial}."
    return sentence


def _meaning(pair: dict[str, Any]) -> str:
    if pair["adjusted_p"] > SIGNIFICANT:
        reliabilities = [pair["reliability_x"], pair["reliability_y"]]
        if all(one is not None and one >= MIN_RELIABILITY for one in reliabilities):
            return "not shown for neurons in general"
        found = " and ".join("none" if one is None else f"{one:.2f}" for one in reliabilities)
        return f"too noisy on these images to say, reliability {found} where {MIN_RELIABILITY} is the least"
    more = pair["spearman"] > 0
    if pair["y"] == "share":
        return (
            f"neurons that lose more images are disturbed {'more' if more else 'less'} (size not controlled)"
        )
    meaning = f"the attack {'aims at' if more else 'avoids'} the neurons that cost the most margin"
    controlled = pair["partial_p"] is not None and pair["partial_p"] <= SIGNIFICANT
    return meaning if controlled else f"{meaning}, not shown beyond weight norm and activation energy"


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
