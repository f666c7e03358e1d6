"""Does hardening help? Every rule on both bundled networks, with controls and AutoAttack.

    python benchmarks/hardening.py [--parts learned proportional searched minutes] [--output docs/hardening.md]

Each row is a run folder of `fragile-neurons harden` under the cache, and AutoAttack is kept per 100 images: a
killed run goes on. Delete the cache to measure again. Run it on a machine that does nothing else: the fits are
as long as their minutes. Needs `fragile-neurons data fetch mnist` and `data fetch cifar10`.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from bench import Cache, Row, machine, table

import fragile_neurons as fn
from fragile_neurons.analysis.robustness import observe_attack
from fragile_neurons.cli.console import progress
from fragile_neurons.report.hardening import difference
from fragile_neurons.runs.spec import make_spec
from fragile_neurons.stats import wilson
from fragile_neurons.workflows import run_spec

KEPT = Path.home() / ".cache/fragile-neurons/benchmarks/hardening"
PACKAGES = ("torch", "torchvision", "pyautoattack")
SUBJECTS = {
    "mnist-cnn": ("mnist", "0.1", ("0.05", "0.2")),
    "cifar10-resnet20": ("cifar10", "2/255", ("1/255", "4/255")),
}
IMAGES = 500  # for AutoAttack
CHUNK = 100
MINUTES = (0.1, 0.5, 2.0)  # of the curve of time
"""Rules: what `harden` is asked for besides, by the name of a row."""
RULES: dict[str, dict[str, dict[str, Any]]] = {
    "learned": {
        "learned, all layers": {"rule": "learned", "layer": "all", "alternatives": True},
        "learned, first layer": {"rule": "learned", "layer": "first"},
    },
    "proportional": {
        "proportional, first layer": {"rule": "proportional", "layer": "first"},
        "proportional, all layers": {"rule": "proportional", "layer": "all"},
    },
    "searched": {"searched, first layer": {"rule": "searched", "layer": "first"}},
}


def run_of(model: str, name: str, options: dict[str, Any]) -> fn.Run:
    """The run folder of a row: continued if it is there."""
    data, epsilon, epsilons = SUBJECTS[model]
    spec = make_spec(
        **{"command": "harden", "model": model, "data": data, "limit": 2_000, "alternatives": False}
        | {"epsilon": epsilon, "epsilons": epsilons}
        | options
    )
    return run_spec(spec, output=KEPT / f"{model}, {name}", progress=progress)


def autoattacked(cache: Cache, run: fn.Run, model: str, weights: Path | None, name: str) -> str:
    """Accuracy under the standard AutoAttack on the first images, with its interval."""
    data_name, epsilon, _ = SUBJECTS[model]
    data = fn.load_data(data_name, limit=2_000)
    classifier = fn.load_model(model, weights=weights)
    right = []
    for start in range(0, IMAGES, CHUNK):

        def measure(start: int = start) -> list[bool]:
            part = data.take(np.arange(start, start + CHUNK))
            found = observe_attack(
                classifier, part, "autoattack", [Fraction(epsilon)], batch_size=CHUNK, seed=0
            )
            kept: list[bool] = np.equal(found.prediction[0], part.labels).tolist()
            return kept

        right += cache.get(f"autoattack {model} {name} {classifier.sha256()[:8]} {start}", measure)
    low, high = wilson(sum(right), len(right))
    return f"{100 * np.mean(right):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def row_of(cache: Cache, model: str, name: str, run: fn.Run) -> Row:
    """What a run found, at its epsilon."""
    found = run.summary["hardening"]
    by = {row["attack"]: row for row in found["differences"] if row["epsilon"] in ("0", found["epsilon"])}
    controls = {row["network"]: row for row in found["accuracies"] if row["attack"] == "pgd-10"}
    shuffled = [row["value"] for control, row in controls.items() if control.startswith("shuffled")]

    def percent(control: str) -> str:
        return f"{100 * controls[control]['value']:.1f}"

    return {
        "rule": name,
        "verdict": found["verdict"] + (" (identity)" if found["is_identity"] else ""),
        "numbers": f"{found['numbers']:,}",
        "clean, pp": difference(by["clean"]),
        "FGSM, pp": difference(by["fgsm"]),
        "PGD-20 x 5, pp": difference(by["pgd"]),
        "APGD-CE + T, pp": difference(by["apgd"]),
        "AutoAttack": autoattacked(cache, run, model, run.hardened_weights, name),
        "PGD-10: hardened": percent("hardened"),
        "shuffled": f"{100 * min(shuffled):.1f} to {100 * max(shuffled):.1f}",
        "inverted": percent("inverted"),
        "uniform": percent("uniform"),
    }


def rules_part(cache: Cache, parts: list[str]) -> str:
    """A table per network: every rule."""
    said = []
    for model, (_, epsilon, _) in SUBJECTS.items():
        rows = []
        for part in parts:
            for name, options in RULES[part].items():
                rows.append(row_of(cache, model, name, run_of(model, name, options)))
        plain = autoattacked(
            cache, run_of(model, *next(iter(RULES[parts[0]].items()))), model, None, "original"
        )
        said.append(
            f"## {model}, epsilon {epsilon}\n\nThe original under AutoAttack: {plain}.\n\n{table(rows)}"
        )
    return "\n\n".join(said)


def minutes_part(cache: Cache) -> str:
    """Gains against weights, by the time they have."""
    rows = []
    for model, (_, epsilon, _) in SUBJECTS.items():
        for minutes in MINUTES:
            options = {"rule": "learned", "layer": "all", "alternatives": True, "minutes": minutes}
            found = run_of(model, f"learned, {minutes:g} min", options).summary["hardening"]
            fits = {fit["network"]: fit for fit in found["fits"]}
            at = {
                (row["network"], row["attack"]): row["value"]
                for row in found["accuracies"]
                if row["epsilon"] in ("0", epsilon) and row["made_on"] == row["network"]
            }
            before = at["original", "pgd"]
            for name, fit in fits.items():
                gain = at[name, "pgd"] - before
                rows.append(
                    {
                        "network": model,
                        "fitted": "gains" if name == "hardened" else name,
                        "numbers": f"{fit['numbers']:,}",
                        "seconds": f"{fit['seconds']:.0f}",
                        "steps": f"{fit['steps']:,}",
                        "clean, pp": f"{100 * (at[name, 'clean'] - at['original', 'clean']):+.2f}",
                        "PGD-20 x 5, pp": f"{100 * gain:+.2f}",
                        "of all weights' gain": f"{100 * gain / (at['all weights', 'pgd'] - before):.0f} %",
                    }
                )
    return f"## Gains against weights in the same time\n\n{table(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*RULES, "minutes"], default=[*RULES, "minutes"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs/hardening.md")
    given = parser.parse_args()
    cache = Cache(KEPT / "autoattack.json")
    rules = [part for part in given.parts if part in RULES]
    parts = [rules_part(cache, rules)] if rules else []
    parts += [minutes_part(cache)] if "minutes" in given.parts else []
    command = f"python benchmarks/hardening.py --parts {' '.join(given.parts)}"
    head = f"# Hardening, measured\n\nMade by `{command}`. {machine(PACKAGES)}"
    given.output.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
