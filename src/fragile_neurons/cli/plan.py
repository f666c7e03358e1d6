"""fragile-neurons plan"""

from __future__ import annotations

import functools
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fragile_neurons.cli.analyze import analyze, asked_spec
from fragile_neurons.cli.console import console
from fragile_neurons.runs.forecast import Forecast, forecast
from fragile_neurons.runs.spec import AnalyzeSpec
from fragile_neurons.runs.subject import open_spec

MEGABYTE = 1e6
EXPLAINED = (
    "Passes: images through the network or from a neuron on, gradients included. Memory: of the probe; "
    "neurons and images add only results to it. Sampled: the fewest, where predictions hardly flip."
)


@functools.wraps(analyze, assigned=("__annotations__",))
def plan(context: typer.Context, **_: Any) -> None:
    """What would `analyze` with these options cost? Passes, minutes and memory, before spending them.

    A few seconds of the run's own work on a few images, for each way to sweep; nothing is written.

    Examples:
      fragile-neurons plan

      fragile-neurons plan --model cifar10-resnet20 --data cifar10 --layer all --limit 10000
    """
    subject = open_spec(asked_spec(context))
    spec = subject.spec
    assert isinstance(spec, AnalyzeSpec)
    assert spec.found is not None
    neurons, images = len(subject.selection.neurons), len(subject.data)
    title = f"{spec.model}: {neurons:,} neurons, {images:,} images of {spec.data}, {spec.threads} threads"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("sweep", "passes", "minutes", "memory, MB", "results, MB"):
        table.add_column(name, justify="left" if name == "sweep" else "right")
    found = forecast(subject)
    for one in found:
        table.add_row(*_cells(one))
    console.print(table)
    missing = [f"{one.way} cannot be had: {one.missing}" for one in found if one.missing]
    chosen = f"--sweep {spec.sweep} takes {spec.found.sweep}: {spec.found.sweep_reason}"
    console.print(Text("\n".join([EXPLAINED, *missing, chosen])), soft_wrap=False)


def _cells(one: Forecast) -> list[str]:
    if one.missing:
        return [one.way, "-", "-", "-", "-"]
    from_ = "from " if one.way == "sampled" else ""
    return [
        one.way,
        f"{from_}{one.passes:,}",
        f"{from_}{one.minutes:.1f}",
        f"{one.memory / MEGABYTE:,.0f}",
        f"{one.results / MEGABYTE:,.0f}",
    ]
