"""Does hardening help? Every rule on two bundled networks, with controls and AutoAttack.

    python benchmarks/hardening.py [--models mnist-cnn ...] [--parts learned time ...] [--output FILE]

Each row is a run folder of `fragile-neurons harden` under the cache, and AutoAttack is kept per 100 images: a
killed run goes on, and what is left out with --parts keeps its rows. Delete the cache to measure again. Needs
`fragile-neurons data fetch mnist` and `data fetch cifar10`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import Cache, Row, machine, table

import fragile_neurons as fn
from fragile_neurons.analysis.robustness import observe_attack
from fragile_neurons.analysis.selection import select
from fragile_neurons.cli.console import progress
from fragile_neurons.folding import fold
from fragile_neurons.hardening.choose import STRENGTHS, try_changes
from fragile_neurons.hardening.gains import Gains
from fragile_neurons.hardening.learn import (
    ALL_WEIGHTS,
    BATCH,
    GAINS,
    alternatives,
    between,
    make_learner,
    make_schedule,
    seconds_per_step,
    with_weights,
)
from fragile_neurons.hardening.observe import CLEAN, NONE, PGD, observe_right
from fragile_neurons.hardening.premises import common_site
from fragile_neurons.hardening.verdict import Paired
from fragile_neurons.report.hardening import difference
from fragile_neurons.runs.spec import make_spec
from fragile_neurons.stats import wilson
from fragile_neurons.training.loop import fit
from fragile_neurons.workflows import run_spec

KEPT = Path.home() / ".cache/fragile-neurons/benchmarks/hardening"
PACKAGES = ("torch", "torchvision", "pyautoattack")
SUBJECTS = {"mnist-cnn": ("mnist", "0.1"), "cifar10-resnet20": ("cifar10", "2/255")}
BUDGET = 0.01
TEST_IMAGES = 2_000
AUTOATTACKED, CHUNK = 500, 100
STEPS = (50, 100, 200, 400)  # of the gains' fit, in the part `time`
RULES: dict[str, dict[str, dict[str, Any]]] = {
    "learned": {"learned, all layers": {"rule": "learned", "layer": "all", "alternatives": True}},
    "proportional": {"proportional, first layer": {"rule": "proportional", "layer": "first"}},
    "searched": {"searched, first layer": {"rule": "searched", "layer": "first"}},
    "others": {
        "learned, first layer": {"rule": "learned", "layer": "first"},
        "proportional, all layers": {"rule": "proportional", "layer": "all"},
    },
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
    by = {row["attack"]: row for row in found["differences"] if row["epsilon"] in ("0", found["epsilon"])}
    controls = {row["network"]: row["value"] for row in found["accuracies"] if row["attack"] == "pgd-10"}
    shuffled = [100 * value for control, value in controls.items() if control.startswith("shuffled")]
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
        "PGD-10, %": f"{100 * controls['hardened']:.1f}",
        "shuffled": f"{min(shuffled):.1f} to {max(shuffled):.1f}",
        "inverted": f"{100 * controls['inverted']:.1f}",
        "uniform": f"{100 * controls['uniform']:.1f}",
    }


def rules_part(cache: Cache, model: str, parts: list[str]) -> str:
    """Every rule on a network."""
    rows = [
        row_of(cache, model, name, run_of(model, name, options))
        for part in parts
        for name, options in RULES[part].items()
    ]
    return f"The original under AutoAttack: {autoattacked(cache, model, None)} %.\n\n{table(rows)}"


def measure_fits(model: str, steps: int) -> list[Row]:
    """Gains fitted in so many steps, and weights fitted for the same time, all chosen on val."""
    name, text = SUBJECTS[model]
    epsilon, classifier = Fraction(text), fn.load_model(model)
    train, val = (fn.load_data(name, split=split) for split in ("train", "val"))
    test = fn.load_data(name, limit=TEST_IMAGES)
    selection = select(classifier, test, layer="all")
    selection = replace(selection, site=common_site(classifier, selection))
    names = [GAINS, *alternatives(classifier)]
    learners = [make_learner(what, classifier, selection.sites, epsilon) for what in names]
    pace = seconds_per_step(learners, train, BATCH)
    span = {"batch_size": 256, "seed": 0}

    def right(network: fn.Classifier) -> list[Any]:
        asked = ((CLEAN, NONE), (PGD, [epsilon]))
        return [observe_right(network, test, *one, images=TEST_IMAGES, **span)[0] for one in asked]

    before, rows = right(classifier), []
    for what, learner, seconds in zip(names, learners, pace, strict=True):
        schedule = make_schedule(learner, max(1, round(steps * pace[0] / seconds)), train, BATCH, 0)
        start = time.perf_counter()
        with learner.working(), tempfile.TemporaryDirectory() as folder:
            for _ in fit(
                learner.module, learner.loss, train, schedule, checkpoint=Path(folder) / "x", purpose={}
            ):
                pass
        took, changes = time.perf_counter() - start, changes_of(learner.result(), classifier, selection)
        best = try_changes(classifier, changes, val, epsilon, budget=BUDGET, **span).best()
        after = before if best is None else right(changes[best]())
        clean, robust = (Paired(*pair) for pair in zip(before, after, strict=True))
        rows.append(
            {
                "fitted": what,
                "numbers": sum(one.numel() for one in learner.module.parameters() if one.requires_grad),
                "steps": schedule.steps,
                "seconds": round(took),
                "strength": 0.0 if best is None else STRENGTHS[best],
                "clean": {"value": clean.gain, "ci95": clean.ci95},
                "pgd": {"value": robust.gain, "ci95": robust.ci95},
            }
        )
    return rows


def changes_of(
    arrays: dict[str, Any], classifier: fn.Classifier, selection: Any
) -> list[Callable[[], fn.Classifier]]:
    """The networks of all strengths of what was fitted."""
    if any(key.startswith("weights/") for key in arrays):
        return [
            partial(with_weights, classifier, between(classifier, arrays, strength)) for strength in STRENGTHS
        ]
    gains = Gains.from_arrays(selection.sites, arrays)
    return [
        partial(fold, classifier, gains.power(strength).changes, selection.images) for strength in STRENGTHS
    ]


def time_part(cache: Cache, model: str) -> str:
    """Gains against weights, by the time they have."""
    rows = []
    for steps in STEPS:
        found = cache.get(f"time {model} {steps}", partial(measure_fits, model, steps))
        everything = next(row["pgd"]["value"] for row in found if row["fitted"] == ALL_WEIGHTS)
        for row in found:
            rows.append(
                {
                    "fitted": row["fitted"],
                    "numbers": f"{row['numbers']:,}",
                    "seconds": row["seconds"],
                    "steps": row["steps"],
                    "strength": row["strength"],
                    "clean, pp": difference(row["clean"]),
                    "PGD-20 x 5, pp": difference(row["pgd"]),
                    "of all weights' gain": f"{100 * row['pgd']['value'] / everything:.0f} %",
                }
            )
    return f"Gains against weights in the same time, from one fit each:\n\n{table(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--parts", nargs="+", choices=[*RULES, "time"], default=[*RULES, "time"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs/hardening.md")
    given = parser.parse_args()
    command = (
        f"python benchmarks/hardening.py --models {' '.join(given.models)} --parts {' '.join(given.parts)}"
    )
    said = [f"# Hardening, measured\n\nMade by `{command}`. {machine(PACKAGES)}", EXPLAINED]
    for model in given.models:
        cache = Cache(KEPT / f"{model}.json")
        said.append(f"## {model}, epsilon {SUBJECTS[model][1]}")
        rules = [part for part in given.parts if part in RULES]
        said += [rules_part(cache, model, rules)] if rules else []
        said += [time_part(cache, model)] if "time" in given.parts else []
    given.output.write_text("\n\n".join(said) + "\n", encoding="utf-8")


EXPLAINED = f"""{TEST_IMAGES:,} test images, APGD (cross-entropy and targeted) and AutoAttack (standard set)
on the first {AUTOATTACKED}. Differences: hardened minus original on the same images, in percentage points
with 95 % Tango intervals; accuracies with Wilson intervals. The last four columns: PGD-10 on {AUTOATTACKED}
images, of the hardened network and of its controls. [What all of it means](method.md#hardening). The number
of steps and the learning rates were set with an eye on validation images and on the first 1,000 of these."""

if __name__ == "__main__":
    main()
