"""fragile-neurons plan"""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_type_hints

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fragile_neurons.cli.analyze import analyze, asked_specs
from fragile_neurons.cli.console import console
from fragile_neurons.runs.forecast import Forecast, forecast
from fragile_neurons.runs.spec import AnalyzeSpec
from fragile_neurons.runs.subject import Subject, open_spec

MEGABYTE = 1e6
LONG = 600  # minutes that are better read as hours
EXPLAINED = (
    "Passes: images through the network or from a neuron on, gradients included. Time: with such "
    "workers here. Memory: of the probe, in each worker; neurons and images add only results to it. Sampled: "
    "the fewest, where predictions hardly flip."
)
Images = Annotated[
    int | None, typer.Option(min=1, help="For how many images, if more than there are on this machine.")
]


def plan(context: typer.Context, **_: Any) -> None:
    """What would `analyze` with these options cost? Passes, time and memory, before spending them.

    A few seconds of the run's own work on a few images, for each way to sweep; nothing is written.

    Examples:
      fragile-neurons plan

      fragile-neurons plan --model cifar10-resnet20 --data cifar10 --layer all --limit 10000

      fragile-neurons plan --model resnet50 --weights net.pt --data folder:some --limit 64 --images 50000
    """
    for asked in asked_specs(context):
        _show(open_spec(asked), context.params["images"], context.params["workers"] or 1)


# the same flags as analyze, but for those that say where to; and how many images
_ELSEWHERE = ("engine", "address", "output", "force")
_HINTS = get_type_hints(analyze, include_extras=True)
_OPTIONS = [
    one.replace(annotation=_HINTS[name])
    for name, one in inspect.signature(analyze).parameters.items()
    if name not in _ELSEWHERE
]
_IMAGES = inspect.Parameter(
    "images", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Images
)
plan.__signature__ = inspect.Signature([*_OPTIONS, _IMAGES])  # type: ignore[attr-defined]
plan.__annotations__ = {**_HINTS, "images": Images}


def _show(subject: Subject, images: int | None, workers: int) -> None:
    spec = subject.spec
    assert isinstance(spec, AnalyzeSpec)
    assert spec.found is not None
    neurons, images = len(subject.selection.neurons), images or len(subject.data)
    crew = f"{workers} workers of {spec.threads} threads" if workers > 1 else f"{spec.threads} threads"
    title = f"{spec.model}: {neurons:,} neurons, {images:,} images of {spec.data}, {crew}"
    found = forecast(subject, images)
    unit, minutes = _unit(found, workers)
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("sweep", "passes", unit, "memory, MB", "results, MB"):
        table.add_column(name, justify="left" if name == "sweep" else "right")
    for one in found:
        table.add_row(*_cells(one, minutes * workers))
    console.print(table)
    missing = [f"{one.way} cannot be had: {one.missing}" for one in found if one.missing]
    chosen = f"--sweep {spec.sweep} takes {spec.found.sweep}: {spec.found.sweep_reason}"
    console.print(Text("\n".join([EXPLAINED, *missing, chosen])), soft_wrap=False)


def _unit(found: list[Forecast], workers: int) -> tuple[str, int]:
    """What to tell the time in, and how many minutes that has."""
    longest = max((one.minutes for one in found if not one.missing), default=0.0) / workers
    return ("hours", 60) if longest > LONG else ("minutes", 1)


def _cells(one: Forecast, minutes: int) -> list[str]:
    """A row; minutes: those of one worker, in a unit of the time column."""
    if one.missing:
        return [one.way, "-", "-", "-", "-"]
    from_ = "from " if one.way == "sampled" else ""
    return [
        one.way,
        f"{from_}{one.passes:,}",
        f"{from_}{one.minutes / minutes:,.1f}",
        f"{one.memory / MEGABYTE:,.0f}",
        f"{one.results / MEGABYTE:,.0f}",
    ]
