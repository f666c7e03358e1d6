"""Is the plan right, what do many processes cost and bring, and what would ImageNet take?

    python benchmarks/scale.py [--parts plan engines imagenet] [--output benchmarks/scale.md]

Each measurement is kept in a cache, so that a killed run goes on; delete the cache to measure again. Run it
on a machine that does nothing else. Needs the extra ray.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from bench import Cache, Row, machine, spread, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/faults"))
from on_ray import busy_workers

import fragile_neurons as fn
from fragile_neurons.runs.engines import open_engine
from fragile_neurons.runs.forecast import forecast
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.remaining import silent
from fragile_neurons.runs.spec import Spec, make_spec
from fragile_neurons.runs.subject import open_spec, open_subject
from fragile_neurons.workflows import run_subject

KEPT = Path.home() / ".cache/fragile-neurons/benchmarks"
CORES = len(os.sched_getaffinity(0))
PLANNED = {
    "mnist-cnn, first layer, FGSM 0.1 and 0.2": {
        "model": "mnist-cnn",
        "data": "mnist",
        "limit": 2_000,
        "epsilons": ["0.1", "0.2"],
    },
    "cifar10-resnet20, its last two layers, clean": {
        "model": "cifar10-resnet20",
        "data": "cifar10",
        "limit": 2_000,
        "layer": "layer3.2.conv*",
        "epsilons": [],
    },
}
SPREAD = {"model": "mnist-cnn", "data": "mnist", "limit": 500, "epsilons": ["0.1"], "threads": 1}
ROUNDS = 3
IMAGES, SOME = 50_000, 32


def planned_part(cache: Cache) -> str:
    """Plan and run by turns: each plan is held against the run after it."""
    found = {
        name: [
            cache.get(f"plan {name}, round {turn}", partial(measure_plan, make_spec(**options)))
            for turn in range(ROUNDS)
        ]
        for name, options in PLANNED.items()
    }
    rows = []
    for name, rounds in found.items():
        planned, measured = ([one[key] for one in rounds] for key in ("planned", "measured"))
        ratios = [after / before for before, after in zip(planned, measured, strict=True)]
        (first, *_) = rounds
        rows.append(
            {
                "run": name,
                "passes": f"{first['passes']:,}",
                "planned, s": f"{statistics.median(planned):.0f}",
                "measured, s": f"{statistics.median(measured):.0f}",
                "measured / planned": spread(ratios),
                "stored, MB: planned, measured": f"{first['results'] / 1e6:.1f}, {first['stored'] / 1e6:.1f}",
            }
        )
    return f"""## The plan, and what it came to

`fragile-neurons plan` probes the run's own work on 32 images, or a batch where that is quick; measured are
all units of the run, the exact way, {CORES} threads, without opening it and without writing its files.
Medians of {ROUNDS} rounds with the extremes: a plan, then its run.

{table(rows)}"""


def measure_plan(spec: Spec) -> Row:
    subject = open_spec(spec)
    (planned,) = [one for one in forecast(subject) if one.way == "exact"]
    found = timed(lambda: open_spec(spec), "local", 1)
    return {"passes": planned.passes, "planned": 60 * planned.minutes, "results": planned.results, **found}


def timed(opened: Callable[[], Any], engine: str, workers: int, *, kill: bool = False) -> Row:
    """The seconds of a run's units by an engine, its units, and its neurons.csv."""
    subject, marks = opened(), []
    killed: list[str] = []
    with tempfile.TemporaryDirectory() as place, open_engine(engine, cores=workers) as units:

        def watched(subject: Any, ledger: Ledger) -> Any:
            marks.append(time.perf_counter())
            yield from units(subject, ledger)
            marks.append(time.perf_counter())

        if kill:
            threading.Timer(10, kill_worker, [killed]).start()
        run = run_subject(subject, output=Path(place) / "run", force=False, engine=watched, progress=silent)
        if kill and not killed:
            sys.exit("error: no worker was killed: the run was over, or none was at a unit after 10 s")
        with Ledger(run.folder) as ledger:
            plan = ledger.units()
            swept = [ledger.result(unit) for unit in plan if unit.kind in ("drops", "patches")]
        return {
            "measured": marks[1] - marks[0],
            "units": len(plan),
            "stored": sum(array.nbytes for arrays in swept for array in arrays.values()),
            "bytes": (run.folder / "neurons.csv").read_text(),
        }


def kill_worker(killed: list[str]) -> None:
    """Kill one that is at a unit, and note which."""
    for worker, unit in busy_workers()[:1]:
        os.kill(worker, signal.SIGKILL)
        killed.append(unit)


WAYS = {
    "this process": ("local", 1, False),
    "ray, 1 worker": ("ray", 1, False),
    "ray, 2 workers": ("ray", 2, False),
    "ray, 2 workers, one killed after 10 s": ("ray", 2, True),
}


def engines_part(cache: Cache) -> str:
    rounds = [
        {
            name: cache.get(
                f"engine {name}, round {number}",
                partial(timed, lambda: open_spec(make_spec(**SPREAD)), engine, workers, kill=kill),
            )
            for name, (engine, workers, kill) in WAYS.items()
        }
        for number in range(ROUNDS)
    ]
    bytes_ = {one["bytes"] for found in rounds for one in found.values()}
    units = rounds[0]["this process"]["units"]

    def of_rounds(name: str) -> list[float]:
        return [found[name]["measured"] for found in rounds]

    alone = of_rounds("this process")
    rows = []
    for name in WAYS:
        faster = [one / seconds for one, seconds in zip(alone, of_rounds(name), strict=True)]
        rows.append(
            {
                "engine": name,
                "seconds": f"{statistics.median(of_rounds(name)):.1f}",
                "faster than this process": spread(faster),
            }
        )
    lost = [one - other for one, other in zip(of_rounds("ray, 1 worker"), alone, strict=True)]
    return f"""## Engines, side by side

`fragile-neurons analyze --limit {SPREAD["limit"]} --epsilons 0.1 --threads 1`, {
        units
    } units, one thread for each
worker, on {CORES} cores: medians of {
        ROUNDS
    } rounds, the engines by turns, with the extremes. The start of the
cluster is not counted, that of the workers is. neurons.csv: {
        "the same bytes from all" if len(bytes_) == 1 else "OTHER BYTES"
    }.

{table(rows)}

One worker took {statistics.median(lost):.1f} s more than this process ({min(lost):.1f} to {
        max(lost):.1f}), or
{
        1000
        * statistics.median(lost)
        / units:.0f} ms for each unit; that a worker has to start (imports, the network, the
digest) is part of it, and a long run has that once."""


def imagenet_part(cache: Cache) -> str:
    found = cache.get("imagenet", measure_imagenet)
    rows = [
        {
            "way": one["way"],
            "passes": f"{one['passes']:.3g}",
            "hours on this machine": f"{one['minutes'] / 60:,.0f}",
            "on 32 such": f"{one['minutes'] / 60 / 32:,.1f}",
            "memory of a worker, GB": f"{one['memory'] / 1e9:.1f}",
            "results stored, GB": f"{one['results'] / 1e9:,.0f}",
        }
        for one in found["ways"]
    ]
    return f"""## ResNet-50 on ImageNet's validation images

{found["neurons"]:,} channels of {found["layers"]} convolutions, {IMAGES:,} images of 224 x 224, clean drops:
the plan from a probe of {SOME} random images on torchvision's resnet50, random weights, {CORES} threads.

{table(rows)}"""


def measure_imagenet() -> Row:
    torch.manual_seed(0)
    classifier = fn.Classifier(torchvision.models.resnet50(weights=None), name="resnet50")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (SOME, 3, 224, 224), dtype=np.uint8)
    data = fn.ImageData(images, np.arange(SOME), tuple(f"class {place}" for place in range(1000)))
    spec = make_spec(
        model="resnet50", data="noise", limit=SOME, layer="all", epsilons=[], batch_size=32, sweep="auto"
    )
    subject = open_subject(spec, classifier, data)
    return {
        "neurons": len(subject.selection.neurons),
        "layers": len(subject.selection.layers),
        "ways": [vars(one) for one in forecast(subject, IMAGES) if not one.missing],
    }


PARTS = {"plan": planned_part, "engines": engines_part, "imagenet": imagenet_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    cache = Cache(KEPT / "scale.json")
    command = f"python benchmarks/scale.py --parts {' '.join(given.parts)}"
    parts = [PARTS[part](cache) for part in given.parts]
    head = f"# Scale, measured\n\nMade by `{command}`. {machine(('torch', 'ray'))}"
    given.output.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
