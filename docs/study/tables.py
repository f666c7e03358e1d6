"""The tables of the study, from the small files of its runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from kept import HERE, Column, Found, Kept, runs
from scipy.stats import spearmanr

from fragile_neurons.report import hardening
from fragile_neurons.report.sentences import accuracy, condition, number, percent
from fragile_neurons.stats import wilson

PERMUTATIONS = 999


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


def networks() -> str:
    rows = []
    for path in sorted((HERE / "cards").glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        command = card["command"].removeprefix("fragile-neurons ")
        cells = [path.stem, f"{card['parameters']:,}", accuracy(card["clean_accuracy"])]
        rows.append([*cells, f"`{command}`", f"`{card['weights_sha256'][:12]}`"])
    return table(["trained here", "parameters", "clean, 10,000 test images", "by", "weights, sha256"], rows)


def robustness() -> str:
    rows = []
    for run in runs("evaluate"):
        found = run.summary
        curves: dict[str, list[Found]] = {}
        for row in found["robust_accuracy"]:
            curves.setdefault(row["epsilon"], []).append(row)
        for epsilon, attacks in curves.items():
            by = {row["attack"]: accuracy(row) for row in attacks}
            doubted = [one for one in found["checks"] if one["status"] in ("warn", "fail")]
            odd = "; ".join(f"{one['name']} ({one['status']})" for one in doubted)
            clean = accuracy(found["clean_accuracy"])
            rows.append(
                [run.name, clean, epsilon, by["fgsm"], by["pgd"], f"{found['data']['n']:,}", odd or "pass"]
            )
    return table(["network", "clean", "epsilon", "FGSM", "PGD-20 x 5", "n", "checks"], rows)


def verdicts() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        for row in run.summary["dropout"]:
            counts = row["verdicts"]
            n = sum(counts.values())
            cells = [str(counts[name]) for name in ("fragile", "robust", "antifragile", "null", "undecided")]
            fragile = share(counts["fragile"], n)
            rows.append([run.name, condition(row), str(n), *cells, str(row["small"]), fragile])
    header = ["network", "condition", "neurons", "fragile", "robust", "antifragile", "null", "undecided"]
    return table([*header, "of these small", "fragile"], rows)


def _relation(pair: Found | None, *, partial: bool = False) -> list[str]:
    if pair is None or pair["spearman"] is None:
        return ["–"] * (3 if partial else 2)
    low, high = pair["ci95"]
    interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    cells = [f"{number(pair['spearman'])}{interval}", f"{pair['adjusted_p']:.2g}"]
    if partial:
        given = pair["partial_spearman"]
        cells.append("–" if given is None else f"{given:+.2f} (p {pair['partial_p']:.2g})")
    return cells


def _pairs(run: Kept) -> dict[tuple[str, str, str, str], Found]:
    return {
        (pair["layer"], pair["epsilon"], pair["x"], pair["y"]): pair for pair in run.summary["correlation"]
    }


def correlations() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        pairs = _pairs(run)
        for layer, epsilon in dict.fromkeys(key[:2] for key in pairs):
            raw = pairs.get((layer, epsilon, "clean_drop", "share"))
            controlled = pairs.get((layer, epsilon, "margin_drop", "excess"))
            n = str((raw or controlled or {}).get("n", ""))
            rows.append([run.name, epsilon, n, *_relation(raw), *_relation(controlled, partial=True)])
    header = ["network", "epsilon", "neurons", "clean drop x share", "p (Holm)", "margin drop x excess"]
    return table([*header, "p (Holm)", "partial"], rows)


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


def carriers() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        last = run.spec["epsilons"][-1]
        for one in run.summary["patching"]:
            if one["epsilon"] != last or one["most_rescuing"] is None:
                continue
            best = one["most_rescuing"]
            low, high = (100 * bound for bound in best["ci95"])
            rescue, inject, share = run.column("rescue"), run.column("inject"), run.column("share")
            struck = int(np.nanargmax(share))
            rows.append(
                [
                    *(run.name, last, f"{one['fooled']:,}"),
                    f"{best['channel']}: {percent(best['rescue'])} [{low:.1f}, {high:.1f}]",
                    f"{struck}: {percent(rescue[struck])} [{_interval(run, struck, 'rescue')}]",
                    percent(float(np.nanmedian(rescue))),
                    f"{percent(inject[struck])} [{_interval(run, struck, 'inject')}]",
                    percent(float(np.nanmedian(inject))),
                    *(_tied(run.column(name), rescue) for name in ("share", "excess")),
                ]
            )
    header = [
        "network",
        "epsilon",
        "fooled",
        "most rescuing neuron",
        "most targeted: rescues",
        "median rescue",
    ]
    header += ["most targeted: injects", "median inject", "share x rescue: rho", "excess x rescue: rho"]
    return table(header, rows)


def _tied(values: Column, others: Column) -> str:
    """Spearman's rho of neurons, with the p of another order of them."""
    known = ~np.isnan(values + others)
    found = spearmanr(values[known], others[known])
    return f"{found.statistic:+.2f} (p {found.pvalue:.2g})"


def _interval(run: Kept, neuron: int, column: str) -> str:
    return ", ".join(f"{100 * run.column(f'{column}_{end}')[neuron]:.1f}" for end in ("low", "high"))


def cumulative() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        last = run.spec["epsilons"][-1]
        for epsilon in (None, last):
            curve = [row for row in run.summary["cumulative"] if row["epsilon"] == epsilon]
            n = run.summary["layers"][0]["neurons"]
            most = [row["step"] for row in curve][-2:]
            for row in curve:
                if row["step"] in most:
                    chance = row["random"]
                    spread = f"{percent(chance['lowest'])} to {percent(chance['highest'])}"
                    cells = [
                        accuracy(row["fragility"]),
                        accuracy(row["targeting"]) if "targeting" in row else "–",
                    ]
                    rows.append(
                        [
                            run.name,
                            condition(row),
                            f"{row['step']} of {n}",
                            *cells,
                            f"{percent(chance['value'])} [{spread}]",
                        ]
                    )
    return table(
        ["network", "condition", "dropped", "by fragility", "by targeting", "at random, 20 draws"], rows
    )


def _by_layer(run: Kept, column: str) -> Column:
    """The mean of each layer's neurons."""
    names = [layer["name"] for layer in run.summary["layers"]]
    places, values = np.array([row["layer"] for row in run.neurons]), run.column(column)
    return np.array([np.nanmean(values[places == name]) for name in names])


def _agreement(one: Kept, other: Kept) -> list[str]:
    """Same clean verdict channel by channel, and what channels in another order within their layers give."""
    verdicts = [np.array([row["clean_verdict"] for row in run.neurons]) for run in (one, other)]
    places = np.array([row["layer"] for row in one.neurons])
    layers = [np.flatnonzero(places == name) for name in dict.fromkeys(places)]
    generator, chance = np.random.default_rng(0), []
    for _ in range(PERMUTATIONS):
        moved = verdicts[1].copy()
        for rows in layers:
            moved[rows] = moved[generator.permutation(rows)]
        chance.append(np.sum(verdicts[0] == moved))
    same = int(np.sum(verdicts[0] == verdicts[1]))
    p = (1 + sum(one >= same for one in chance)) / (1 + PERMUTATIONS)
    return [share(same, len(places)), percent(float(np.mean(chance)) / len(places)), f"{p:.2g}"]


def seeds() -> str:
    """Channels of networks trained apart do not correspond: agreement of channels is the control."""
    rows = []
    for one, other in combinations(runs("analyze", layer="all", data="cifar10"), 2):
        cells = _agreement(one, other)
        for column in ("clean_drop", "excess"):
            cells.append(_tied(_by_layer(one, column), _by_layer(other, column)))
        rows.append([one.name, other.name, *cells])
    header = ["network", "and", "same clean verdict, channel by channel", "by chance", "p"]
    return table([*header, "layers' mean clean drop, Spearman", "layers' mean excess, Spearman"], rows)


def layers() -> str:
    rows = []
    for run in runs("analyze", layer="all"):
        counts: dict[str, Counter[str]] = {"first": Counter(), "others": Counter()}
        first = run.summary["layers"][0]["name"]
        for row in run.summary["dropout"]:
            if row["epsilon"] is None:
                counts["first" if row["layer"] == first else "others"].update(row["verdicts"])
        heads = [pair for pair in run.summary["correlation"] if pair["headline"]]
        for place, count in counts.items():
            n = sum(count.values())
            here = [pair for pair in heads if (pair["layer"] == first) == (place == "first")]
            cells = [f"{count['fragile']} of {n}: {share(count['fragile'], n)}"]
            for x, y in (("clean_drop", "share"), ("margin_drop", "excess")):
                of = [
                    pair for pair in here if (pair["x"], pair["y"]) == (x, y) and pair["spearman"] is not None
                ]
                rhos = [pair["spearman"] for pair in of]
                shown = sum(pair["adjusted_p"] <= 0.05 and pair["spearman"] > 0 for pair in of)
                less = sum(pair["adjusted_p"] <= 0.05 and pair["spearman"] < 0 for pair in of)
                spread = f"{np.median(rhos):+.2f} ({min(rhos):+.2f} to {max(rhos):+.2f})" if rhos else "–"
                cells.append(f"{spread}; {shown} above, {less} below 0, of {len(of)}")
            rows.append([run.name, place, *cells])
    header = ["network", "layers", "fragile, clean", "clean drop x share: median rho (range); shown"]
    return table([*header, "margin drop x excess"], rows)


def hardened() -> str:
    rows = []
    for run in runs("harden"):
        found = run.summary["hardening"]
        by = {row["attack"]: row for row in found["differences"] if row["epsilon"] in ("0", found["epsilon"])}
        controls = {
            row["network"]: 100 * row["value"] for row in found["accuracies"] if row["attack"] == "pgd-10"
        }
        shuffled = [value for name, value in controls.items() if name.startswith(hardening.SHUFFLED)]
        against = {row["network"]: hardening.difference(row) for row in found["against"]}
        rows.append(
            [
                *(
                    run.name,
                    found["epsilon"],
                    f"{found['rule']}, {run.spec['layer']}",
                    f"{found['numbers']:,}",
                ),
                found["verdict"] + (" (identity)" if found["is_identity"] else ""),
                *(
                    hardening.difference(by[name]) if name in by else "–"
                    for name in ("clean", "fgsm", "pgd", "apgd")
                ),
                f"{controls['hardened']:.1f}" if "hardened" in controls else "–",
                f"{min(shuffled):.1f} to {max(shuffled):.1f}" if shuffled else "–",
                f"{controls['inverted']:.1f}" if "inverted" in controls else "–",
                f"{controls['uniform']:.1f}" if "uniform" in controls else "–",
                against.get("all weights", "–"),
            ]
        )
    header = ["network", "epsilon", "rule, layers", "numbers", "verdict", "clean, pp", "FGSM, pp", "PGD, pp"]
    controls = ["APGD, pp", "PGD-10, %", "shuffled", "inverted", "uniform", "PGD beside all weights, pp"]
    return table([*header, *controls], rows)


TABLES: Sequence[Callable[[], str]] = (
    *(networks, robustness, verdicts, correlations, precisions, carriers, cumulative),
    *(seeds, layers, hardened),
)
