"""The tables behind the charts of a run: rows of plain values, the same on a page and in a figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fragile_neurons.hardening.trials import HARDENED, ORIGINAL, SHUFFLED
from fragile_neurons.report.hardening import ATTACKS, controls
from fragile_neurons.runs.run import Run

Row = dict[str, Any]

MOST_CLASSES = 50  # in a chart with a row for each
DIGITS = 6  # significant ones; the run's own files have all
NAMES = {"fgsm": "FGSM", "pgd": "PGD", "pgd-margin": "PGD on the margin", "autoattack": "AutoAttack"}
JUDGED = {"pgd": "PGD on both losses"}  # in `evaluate` it climbs the cross-entropy alone
NEURON_COLUMNS = (
    "clean_drop", "clean_low", "clean_high", "clean_lost", "clean_gained", "clean_q", "clean_verdict",
    "adv_drop", "adv_low", "adv_high", "adv_lost", "adv_gained", "adv_q", "adv_verdict", "transfer_drop",
    "gap_drop", "margin_drop", "adv_margin_drop", "relative", "share", "wins", "noise_share", "swap_share",
    "noise_excess", "excess", "rescue", "rescue_low", "rescue_high", "inject", "inject_low", "inject_high",
    "weight_norm", "activation_energy", "sampling_se",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Rows with the same columns. paged: those of them of which one value at a time is shown."""

    title: str
    rows: list[Row]
    paged: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The names of the columns that are not empty."""
        first = self.rows[0] if self.rows else {}
        return [name for name in first if any(row[name] is not None for row in self.rows)]

    def page(self, **values: str | None) -> Dataset:
        """The rows of one layer, one epsilon; rows without one belong to all."""
        wanted = {name: value for name, value in values.items() if name in self.paged}
        rows = [row for row in self.rows if all(row[name] in (None, value) for name, value in wanted.items())]
        return replace(self, rows=rows)


def datasets(run: Run) -> dict[str, Dataset]:
    """The tables of a run by name; those that it has nothing for are left out."""
    found, made = run.summary, {"accuracy": Dataset("Accuracy against epsilon", accuracy_rows(run))}
    if run.command == "analyze":
        made |= _analysis(run)
    if run.command == "harden":
        made["gains"] = Dataset("Gains", gain_rows(run.gains.to_pylist()), ("layer",))
        made |= _hardening(found)
    else:
        made["confusion"] = Dataset("Confusion, clean and attacked", _confusion(run), ("epsilon",))
        made["classes"] = Dataset("Accuracy by class", _classes(found), ("epsilon",))
    return {name: one for name, one in made.items() if one.rows}


def accuracy_rows(run: Run) -> list[Row]:
    """A row per network, attack and epsilon, clean as epsilon 0."""
    found = run.summary
    clean, names = found["clean_accuracy"], attack_names(found)
    rows = [
        _measured(one, network=ORIGINAL, attack=names[one["attack"]], epsilon=one["epsilon"])
        for one in found["robust_accuracy"]
    ]
    attacks = dict.fromkeys(row["attack"] for row in rows) or {"none": None}
    rows = [_measured(clean, network=ORIGINAL, attack=attack, epsilon="0") for attack in attacks] + [
        row for row in rows if row["epsilon"] != "0"
    ]
    hardening = found["hardening"]
    for one in hardening["accuracies"] if hardening else ():
        if one["network"] == one["made_on"] == HARDENED and one["attack"] in ("clean", "fgsm", "pgd"):
            for attack in attacks if one["attack"] == "clean" else (names[one["attack"]],):
                rows.append(_measured(one, network=HARDENED, attack=attack, epsilon=one["epsilon"]))
    return [{**row, "budget": number(row["epsilon"])} for row in rows]


def number(epsilon: str) -> float:
    """The value of an epsilon as it is written in a summary."""
    above, _, below = epsilon.partition("/")
    return float(above) / float(below or 1)


def written_epsilons(found: Row) -> dict[float, str]:
    """The budgets of a run by their values, as they were written."""
    spec = found["spec"]
    return {number(text): text for text in (*spec["epsilons"], *filter(None, [spec.get("epsilon")]))}


def named(attack: str) -> str:
    """An attack as it is called in words; the user's own without the folders of its file."""
    return NAMES.get(attack, attack.rpartition("/")[2])


def attack_names(found: Row) -> dict[str, str]:
    """The attacks of a run in words; in full where two would have one name."""
    judged = JUDGED if found["hardening"] else {}
    attacks = [row["attack"] for row in found["robust_accuracy"]]
    short = {attack: judged.get(attack, named(attack)) for attack in attacks}
    counts = Counter(short.values())
    return {attack: name if counts[name] == 1 else attack for attack, name in short.items()}


def _measured(one: Row, **keys: Any) -> Row:
    low, high = one["ci95"]
    return {**keys, "value": one["value"], "low": low, "high": high, "n": one["n"]}


def _analysis(run: Run) -> dict[str, Dataset]:
    found, both = run.summary, ("layer", "epsilon")
    neurons = neuron_rows(run.neurons.to_pylist(), found["spec"]["epsilons"])
    rank = {(row["layer"], row["channel"], row["epsilon"]): row for row in neurons}
    groups = _groups(run, rank)
    return {
        "neurons": Dataset("Neurons", neurons, both),
        "targeting": Dataset(
            "Targeting of fooled and resisted images",
            _fooled_and_resisted(groups),
            both,
        ),
        "by class": Dataset("Targeting by class", _by_class(groups), both),
        "cumulative": Dataset("Neurons dropped one after another", _cumulative(found), both),
        "correlation": Dataset("Fragility against targeting", _correlation(found)),
    }


def neuron_rows(rows: Iterable[Row], epsilons: Sequence[str]) -> list[Row]:
    """neurons.csv with names, epsilons as they were written, and ranks by fragility and by share."""
    texts = {number(text): text for text in epsilons}
    named_rows = [
        {
            "neuron": f"{row['layer']}:{row['channel']}",
            "layer": row["layer"],
            "channel": row["channel"],
            "epsilon": None if row["epsilon"] is None else texts.get(row["epsilon"], str(row["epsilon"])),
            **{name: shortened(row[name]) for name in NEURON_COLUMNS if name in row},
        }
        for row in rows
    ]
    for place, by in (("fragility_rank", "margin_drop"), ("share_rank", "share")):
        if all(row.get(by) is None for row in named_rows):
            continue
        seen: Counter[tuple[str, str | None]] = Counter()
        for row in sorted(
            named_rows, key=lambda row: -math.inf if row[by] is None else row[by], reverse=True
        ):
            seen[row["layer"], row["epsilon"]] += 1
            row[place] = seen[row["layer"], row["epsilon"]]
    return named_rows


def shortened(value: Any) -> Any:
    """A float with six significant digits."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _groups(run: Run, neurons: dict[tuple[Any, ...], Row]) -> list[Row]:
    texts = written_epsilons(run.summary)
    rows = []
    for row in run.targeting.to_pylist():
        key = (row["layer"], row["channel"], texts.get(row["epsilon"]))
        if row["share"] is not None and row["images"] and key in neurons:
            neuron = neurons[key]
            names = {name: neuron[name] for name in ("neuron", "layer", "epsilon", "share_rank")}
            rows.append(
                {
                    **names,
                    "group": row["group"],
                    "share": shortened(row["share"]),
                    "wins": shortened(row["wins"]),
                    "images": row["images"],
                }
            )
    return rows


def _fooled_and_resisted(groups: Sequence[Row]) -> list[Row]:
    """The share on fooled and on resisted images, where there are both."""
    by = {(row["neuron"], row["epsilon"], row["group"]): row for row in groups}
    return [
        {
            **{name: row[name] for name in ("neuron", "layer", "epsilon", "share_rank")},
            "fooled_share": row["share"],
            "resisted_share": other["share"],
            "difference": shortened(row["share"] - other["share"]),
            "fooled": row["images"],
            "resisted": other["images"],
        }
        for (neuron, epsilon, group), row in by.items()
        if group == "fooled" and (other := by.get((neuron, epsilon, "resisted")))
    ]


def _by_class(groups: Sequence[Row]) -> list[Row]:
    """The share of a class over that of all images, for as many classes as a chart can show."""
    whole = {(row["neuron"], row["epsilon"]): row["share"] for row in groups if row["group"] == "all"}
    classes = dict.fromkeys(row["group"] for row in groups if row["group"].startswith("class:"))
    if len(classes) > MOST_CLASSES:
        return []
    return [
        {
            **{name: row[name] for name in ("neuron", "layer", "epsilon", "share_rank")},
            "class": row["group"].removeprefix("class:"),
            "share": row["share"],
            "relative_share": shortened(row["share"] / whole[row["neuron"], row["epsilon"]]),
            "images": row["images"],
        }
        for row in groups
        if row["group"] in classes and whole[row["neuron"], row["epsilon"]]
    ]


def _cumulative(found: Row) -> list[Row]:
    rows = []
    for one in found["cumulative"]:
        keys = {"layer": one["layer"], "epsilon": one["epsilon"], "dropped": one["step"]}
        for order in ("fragility", "targeting"):
            if order in one:
                rows.append(_measured(one[order], order=order, **keys))
        chance = one["random"]
        spread = {"value": chance["value"], "low": chance["lowest"], "high": chance["highest"], "n": None}
        rows.append({"order": f"random ({chance['draws']} draws)", **keys, **spread})
    return rows


def _correlation(found: Row) -> list[Row]:
    names = (
        "layer", "epsilon", "x", "y", "headline", "spearman", "kendall", "p", "adjusted_p",
        "partial_spearman", "partial_p", "reliability_x", "reliability_y", "disattenuated", "n",
    )  # fmt: skip
    rows = []
    for pair in found["correlation"]:
        low, high = pair["ci95"]
        row = {name: shortened(pair[name]) for name in names}
        rows.append({**row, "rho_low": shortened(low), "rho_high": shortened(high)})
    return rows


def _confusion(run: Run) -> list[Row]:
    """Per epsilon: how many images of a class were seen as which, before and after the attack shown."""
    found = run.summary
    classes = found["data"].get("classes", ())
    if not 0 < len(classes) <= MOST_CLASSES:
        return []
    attack = run.spec.shown_attack
    texts = written_epsilons(found)
    before: Counter[tuple[Any, ...]] = Counter()
    after: Counter[tuple[Any, ...]] = Counter()
    for row in run.images.select(
        ["attack", "epsilon", "label", "clean_prediction", "adversarial_prediction"]
    ).to_pylist():
        epsilon = texts.get(row["epsilon"])
        if row["attack"] == attack and epsilon is not None:
            before[epsilon, row["label"], row["clean_prediction"]] += 1
            after[epsilon, row["label"], row["adversarial_prediction"]] += 1
    return [
        {
            "epsilon": epsilon,
            "attack": named(attack),
            "class": classes[label],
            "predicted": classes[predicted],
            "clean": before[epsilon, label, predicted],
            "attacked": after[epsilon, label, predicted],
            "shift": after[epsilon, label, predicted] - before[epsilon, label, predicted],
        }
        for epsilon in dict.fromkeys(epsilon for epsilon, _, _ in after)
        for label in range(len(classes))
        for predicted in range(len(classes))
    ]


def _classes(found: Row) -> list[Row]:
    names = attack_names(found)
    return [
        _measured(per_class, **{"class": name, "series": names[one["attack"]], "epsilon": one["epsilon"]})
        for one in found["robust_accuracy"]
        if len(one["per_class"]) <= MOST_CLASSES
        for name, per_class in one["per_class"].items()
    ]


def _hardening(found: Row) -> dict[str, Dataset]:
    one = found["hardening"]
    classes = [
        _measured(row[side], **{"class": name, "series": series, "epsilon": one["epsilon"]})
        for name, row in one["per_class"].items()
        for side, series in (("before", ORIGINAL), ("after", HARDENED))
    ]
    few = classes if len(one["per_class"]) <= MOST_CLASSES else []
    return {
        "strengths": Dataset("Strengths, tried on validation images", _strengths(one)),
        "controls": Dataset("Controls, PGD-10", _controls(one)),
        "classes": Dataset("PGD-20 by class", few, ("epsilon",)),
    }


def gain_rows(rows: Iterable[Row]) -> list[Row]:
    """gains.csv with the neurons' names."""
    names = ("layer", "channel", "gain", "shift")
    return [
        {"neuron": f"{row['layer']}:{row['channel']}", **{name: shortened(row[name]) for name in names}}
        for row in rows
    ]


def _strengths(one: Row) -> list[Row]:
    """What each strength of a fit costs and brings on validation images, where both were measured."""
    rows = []
    for chosen in one["chosen"]:
        for asked, place in enumerate(chosen["attacked"] if chosen["strengths"] else ()):
            rows.append(
                {
                    "network": chosen["network"],
                    "strength": chosen["strengths"][place],
                    "clean_change": shortened(chosen["clean"][1 + place] - chosen["clean"][0]),
                    "robust_change": shortened(chosen["robust"][1 + asked] - chosen["robust"][0]),
                    "taken": place == chosen["taken"],
                }
            )
    return rows


def _controls(one: Row) -> list[Row]:
    return [
        _measured(
            row,
            network=row["network"],
            kind=SHUFFLED if row["network"].startswith(SHUFFLED) else row["network"],
            attack=ATTACKS[row["attack"]],
        )
        for row in controls(one).values()
    ]
