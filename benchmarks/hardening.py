"""Does hardening help? Every rule on two bundled networks, with controls and AutoAttack.

    python benchmarks/hardening.py [--models mnist-cnn ...] [--output FILE]

Each row is a run folder of `fragile-neurons harden` under the cache, and AutoAttack is kept per 100 images: a
killed run goes on. Delete the cache to measure again. Needs `fragile-neurons data fetch mnist` and
`data fetch cifar10`.
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
from fragile_neurons.report.hardening import TRIED, controls, difference, gained, tried_rows
from fragile_neurons.runs.spec import make_spec
from fragile_neurons.stats import wilson
from fragile_neurons.workflows import run_spec

KEPT = Path.home() / ".cache/fragile-neurons/benchmarks/hardening"
PACKAGES = ("torch", "torchvision", "pyautoattack")
SUBJECTS = {"mnist-cnn": ("mnist", "0.1"), "cifar10-resnet20": ("cifar10", "2/255")}
BUDGET = 0.01
TEST_IMAGES = 2_000
AUTOATTACKED, CHUNK = 500, 100
RULES: dict[str, dict[str, Any]] = {
    "learned, all layers": {"rule": "learned", "layer": "all", "alternatives": True},
    "learned, first layer": {"rule": "learned", "layer": "first"},
    "proportional, first layer": {"rule": "proportional", "layer": "first"},
    "proportional, all layers": {"rule": "proportional", "layer": "all"},
    "searched, first layer": {"rule": "searched", "layer": "first"},
}
"""What `harden` is asked for besides the model and epsilon, by the name of a row."""


def run_of(model: str, name: str, options: dict[str, Any]) -> fn.Run:
    """The run of a row, continued in its folder if it is there."""
    data, epsilon = SUBJECTS[model]
    plain = {"command": "harden", "model": model, "data": data, "limit": TEST_IMAGES, "alternatives": False}
    spec = make_spec(**plain | {"epsilon": epsilon, "epsilons": (), "budget": BUDGET} | options)
    return run_spec(spec, output=KEPT / f"{model}, {name}", progress=progress)


def autoattacked(cache: Cache, model: str, weights: Path | None) -> str:
    """Accuracy under the standard AutoAttack on the first images, with its interval."""
    name, epsilon = SUBJECTS[model]
    data = fn.load_data(name, limit=TEST_IMAGES)
    classifier = fn.load_model(model, weights=weights)
    right = []
    for start in range(0, AUTOATTACKED, CHUNK):

        def measure(start: int = start) -> list[bool]:
            part = data.take(np.arange(start, start + CHUNK))
            budgets = [Fraction(epsilon)]
            found = observe_attack(classifier, part, "autoattack", budgets, batch_size=CHUNK, seed=0)
            kept: list[bool] = np.equal(found.prediction[0], part.labels).tolist()
            return kept

        right += cache.get(f"autoattack {model} {classifier.sha256()[:12]} {start}", measure)
    low, high = wilson(sum(right), len(right))
    return f"{100 * np.mean(right):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def row_of(cache: Cache, model: str, name: str, run: fn.Run) -> Row:
    """What a run found, at its epsilon."""
    found = run.summary["hardening"]
    by, values = gained(found), {network: row["value"] for network, row in controls(found).items()}
    shuffled = [100 * value for network, value in values.items() if network.startswith("shuffled")]
    return {
        "rule": name,
        "verdict": found["verdict"] + (" (identity)" if found["is_identity"] else ""),
        "numbers": f"{found['numbers']:,}",
        **{
            f"{title}, pp": difference(by[attack])
            for title, attack in (
                ("clean", "clean"),
                ("FGSM", "fgsm"),
                ("PGD-20 x 5", "pgd"),
                ("APGD", "apgd"),
            )
        },
        "AutoAttack, %": autoattacked(cache, model, run.hardened_weights),
        "PGD-10, %": f"{100 * values['hardened']:.1f}",
        "shuffled": f"{min(shuffled):.1f} to {max(shuffled):.1f}",
        "inverted": f"{100 * values['inverted']:.1f}",
        "uniform": f"{100 * values['uniform']:.1f}",
    }


def beside_weights(run: fn.Run) -> str:
    """What learned gains reach of what all weights do in the same time, and what APGD leaves of it."""
    found = run.summary["hardening"]
    values = {
        (row["network"], row["attack"]): 100 * row["value"]
        for row in found["accuracies"]
        if row["n"] == TEST_IMAGES and row["made_on"] == row["network"]
    }
    clean = [values[name, "clean"] for name in ("hardened", "all weights")]
    gain, other = (values[name, "pgd"] - values["original", "pgd"] for name in ("hardened", "all weights"))
    left = next(row for row in found["left_over"] if row["attack"] == "apgd")
    apgd = next(row["value"] for row in found["differences"] if row["attack"] == "apgd")
    pgd = (apgd - left["value"]) / left["share"]
    against = next(row for row in found["against"] if row["network"] == "all weights")
    weights = f"all weights in the same time {other:+.1f} pp at {clean[1]:.1f} %: {gain / other:.0%} of it"
    attacked = f"PGD gains {100 * pgd:+.1f} pp, APGD {100 * apgd:+.1f}, {100 * apgd / pgd:.0f} % of it"
    return (
        f"{gain:+.1f} pp under PGD at {clean[0]:.1f} % clean, {weights} "
        f"(gains minus weights {difference(against)}). On the images that APGD attacked {attacked}."
    )


def rules_part(cache: Cache, model: str) -> str:
    """Every rule on a network."""
    runs = {name: run_of(model, name, options) for name, options in RULES.items()}
    rows = [row_of(cache, model, name, run) for name, run in runs.items()]
    said = [f"The original under AutoAttack: {autoattacked(cache, model, None)} %.", table(rows)]
    for name, run in runs.items():
        if RULES[name].get("alternatives"):
            said.append(f"{name}: {beside_weights(run)}")
            said.append("The same fits by strength, on validation images:")
            said.append(table([dict(zip(TRIED, row, strict=True)) for row in tried_rows(run.summary)]))
    return "\n\n".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs/hardening.md")
    given = parser.parse_args()
    command = f"python benchmarks/hardening.py --models {' '.join(given.models)}"
    said = [f"# Hardening, measured\n\nMade by `{command}`. {machine(PACKAGES)}", EXPLAINED]
    for model in given.models:
        cache = Cache(KEPT / f"{model}.json")
        said.append(f"## {model}, epsilon {SUBJECTS[model][1]}")
        said.append(rules_part(cache, model))
    given.output.write_text("\n\n".join(said) + "\n", encoding="utf-8")


EXPLAINED = f"""{TEST_IMAGES:,} test images, APGD (cross-entropy and targeted) and AutoAttack (standard set)
on the first {AUTOATTACKED}. Differences: hardened minus original on the same images, in percentage points
with 95 % Tango intervals; accuracies with Wilson intervals. The last four columns: PGD-10 on {AUTOATTACKED}
images, of the hardened network and of its controls. [What all of it means](method.md#hardening). The number
of steps and the learning rates were set with an eye on validation images and on the first 1,000 of these."""

if __name__ == "__main__":
    main()
