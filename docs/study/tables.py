"""The tables of networks, accuracies, verdicts, layers and hardening, from the small files of the runs."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations

import numpy as np
from cells import PERMUTATIONS, rank_correlation, share, table
from kept import ATTACKS, HERE, Column, Kept, can_be_asked, runs
from relations import HEADLINES

from fragile_neurons.analysis.verdicts import VERDICTS
from fragile_neurons.hardening.trials import SHUFFLED
from fragile_neurons.probe import FLAGGED
from fragile_neurons.report import hardening
from fragile_neurons.report.sentences import accuracy, condition, percent


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
        curves: dict[str, dict[str, str]] = {}
        for row in found["robust_accuracy"]:
            curves.setdefault(row["epsilon"], {})[row["attack"]] = accuracy(row)
        clean, n = accuracy(found["clean_accuracy"]), f"{found['data']['n']:,}"
        for epsilon, by in curves.items():
            rows.append([run.name, clean, epsilon, *(by[name] for name in ATTACKS), n])
    return table(["network", "clean", "epsilon", *ATTACKS.values(), "n"], rows)


def checks() -> str:
    """What warns or fails of a run's checks, with what was measured."""
    return table(["network", "warns or fails"], [[run.name, _doubts(run)] for run in runs("evaluate")])


def _doubts(run: Kept) -> str:
    found = [one for one in run.summary["checks"] if one["status"] in FLAGGED]
    return "; ".join(f"{one['name']}: {one['status']} ({one['value']:.3g})" for one in found) or "nothing"


def verdicts() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        for row in run.summary["dropout"]:
            counts = row["verdicts"]
            n = sum(counts.values())
            cells = [str(counts[name]) for name in VERDICTS]
            fragile = share(counts["fragile"], n)
            rows.append([run.name, condition(row), str(n), *cells, str(row["small"]), fragile])
    header = ["network", "condition", "neurons", *VERDICTS]
    return table([*header, "of these small", "fragile"], rows)


def carriers() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        last = run.largest_epsilon
        for one in run.summary["patching"]:
            if one["epsilon"] != last or one["most_rescuing"] is None or np.isnan(run.column("share")).all():
                continue
            best = one["most_rescuing"]
            low, high = (100 * bound for bound in best["ci95"])
            struck = int(np.nanargmax(run.column("share")))
            cells = [f"{best['channel']}: {percent(best['rescue'])} [{low:.1f}, {high:.1f}]"]
            for column in ("rescue", "inject"):
                values = run.column(column)
                ends = (100 * run.column(f"{column}_{end}")[struck] for end in ("low", "high"))
                interval = ", ".join(f"{end:.1f}" for end in ends)
                cells += [f"{percent(values[struck])} [{interval}]", percent(float(np.nanmedian(values)))]
            rows.append([run.name, last, f"{one['fooled']:,}", f"{struck}", *cells])
    header = ["network", "epsilon", "fooled", "most targeted neuron", "most rescuing neuron"]
    return table([*header, "most targeted rescues", "median", "most targeted injects", "median"], rows)


def cumulative() -> str:
    rows = []
    for run in runs("analyze", layer="first"):
        last = run.largest_epsilon
        for epsilon in (None, last):
            curve = [row for row in run.summary["cumulative"] if row["epsilon"] == epsilon]
            n = run.summary["layers"][0]["neurons"]
            most = [row["step"] for row in curve][-2:]
            for row in curve:
                if row["step"] in most:
                    chance = row["random"]
                    spread = f"{100 * chance['lowest']:.1f} to {100 * chance['highest']:.1f}"
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
    p = (1 + sum(by_chance >= same for by_chance in chance)) / (1 + PERMUTATIONS)
    return [share(same, len(places)), percent(float(np.mean(chance)) / len(places)), f"{p:.2g}"]


def seeds() -> str:
    """Channels of networks trained apart do not correspond: agreement of channels is the control."""
    rows = []
    for one, other in combinations(runs("analyze", layer="all", data="cifar10"), 2):
        cells = _agreement(one, other)
        for column in ("clean_drop", "margin_drop", "relative"):
            cells.append(rank_correlation(_by_layer(one, column), _by_layer(other, column)))
        rows.append([one.name, other.name, *cells])
    header = ["network", "and", "same clean verdict, channel by channel", "by chance", "p"]
    means = ["clean drop", "margin drop", "disturbance relative to the map"]
    return table([*header, *(f"layers' mean {one}: rho" for one in means)], rows)


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
            for x, y in HEADLINES:
                of = [pair for pair in here if (pair["x"], pair["y"]) == (x, y) and can_be_asked(pair)]
                rhos = [pair["spearman"] for pair in of]
                shown = sum(pair["adjusted_p"] <= 0.05 and pair["spearman"] > 0 for pair in of)
                less = sum(pair["adjusted_p"] <= 0.05 and pair["spearman"] < 0 for pair in of)
                spread = f"{np.median(rhos):+.2f} ({min(rhos):+.2f} to {max(rhos):+.2f})" if rhos else "–"
                cells.append(f"{spread}; {shown} above, {less} below 0, of {len(of)}")
            rows.append([run.name, f"{run.summary['data']['n']:,}", place, *cells])
    header = ["network", "images", "layers", "fragile, clean"]
    return table([*header, "clean drop x share: median rho (range); shown", "margin drop x excess"], rows)


def hardened() -> str:
    rows = []
    for run in runs("harden"):
        found = run.summary["hardening"]
        by = {attack: hardening.difference(row) for attack, row in hardening.gained(found).items()}
        own = [row for row in found["accuracies"] if row["network"] == row["made_on"] == "original"]
        before = {row["attack"]: row for row in own if row["epsilon"] in ("0", found["epsilon"])}
        against = {row["network"]: hardening.difference(row) for row in found["against"]}
        cells = [*_hardening(run), f"{found['numbers']:,}"]
        cells += [found["verdict"] + (" (identity)" if found["is_identity"] else "")]
        cells += [accuracy(before[name]) for name in ("clean", "pgd")]
        cells += [by.get(name, "–") for name in ("clean", "fgsm", "pgd", "apgd")]
        cells += [against.get(name, "–") for name in ("all weights", "batch norms")]
        rows.append([*cells, _doubts(run)])
    header = ["network", "epsilon", "rule, layers", "numbers", "verdict", "original: clean", "PGD"]
    header += ["hardened - original: clean, pp", "FGSM, pp", "PGD, pp", "APGD, pp"]
    return table([*header, "PGD - all weights, pp", "PGD - batch norms, pp", "checks"], rows)


def _hardening(run: Kept) -> list[str]:
    return [run.name, run.summary["hardening"]["epsilon"], f"{run.spec['rule']}, {run.spec['layer']}"]


def hardening_controls() -> str:
    """The same gains on other neurons, the other way round and all alike, under PGD-10."""
    rows = []
    for run in runs("harden"):
        found = run.summary["hardening"]
        by = hardening.controls(found)
        shuffled = [row["value"] for name, row in by.items() if name.startswith(SHUFFLED)]
        tried = [row for row in found["chosen"] if row["network"].startswith(SHUFFLED)]
        weakened = sum(row["strengths"][row["taken"]] < 1 for row in tried)
        if "hardened" in by:
            cells = [accuracy(by["original"]), accuracy(by["hardened"])]
            better = sum(value >= by["hardened"]["value"] for value in shuffled)
            cells += [f"{percent(min(shuffled))} to {percent(max(shuffled))}", f"{better} of {len(shuffled)}"]
            cells += [f"{weakened} of {len(shuffled)}"]
            cells += [percent(by[name]["value"]) for name in ("inverted", "uniform")]
            rows.append([*_hardening(run), *cells])
    header = ["network", "epsilon", "rule, layers", "original", "hardened", "twenty shuffles"]
    return table([*header, "shuffles as good", "weakened", "inverted", "uniform"], rows)
