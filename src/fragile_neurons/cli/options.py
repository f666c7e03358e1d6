"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fragile_neurons import own
from fragile_neurons.classifier import parse_device
from fragile_neurons.data import catalogue
from fragile_neurons.data.catalogue import DEFAULT_LIMIT, count_images, default_epsilons
from fragile_neurons.errors import InputError
from fragile_neurons.models.loading import TORCHVISION, default_data
from fragile_neurons.norms import format_epsilon, parse_epsilons

EMBEDDED_MODEL = "mnist-cnn"

Model = Annotated[
    str,
    typer.Option(
        help="A bundled name, a torchvision name, timm:NAME, or your own: package.module:factory or "
        "path/file.py:factory. See `fragile-neurons models`."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A file of weights, or the word torchvision to fetch its own."),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="A name (see `fragile-neurons data list`), folder:PATH or npz:PATH. Default: what a bundled "
        "network was trained on."
    ),
]
Split = Annotated[str, typer.Option(help="test, val or train.")]
Limit = Annotated[
    int | None,
    typer.Option(help=f"Images, a stratified sample. Default: {DEFAULT_LIMIT:,} or all there are."),
]
Resize = Annotated[
    str | None, typer.Option(metavar="HxW", help="Resize the images of folder:PATH, e.g. 32 or 32x48.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out, and record, images of folder:PATH that cannot be read.")
]
Mean = Annotated[
    str | None, typer.Option(help="Normalisation per channel, by commas; the model's own by default.")
]
Std = Annotated[str | None, typer.Option(help="Per channel, by commas.")]
Epsilons = Annotated[
    str | None,
    typer.Option(
        help="L-infinity budgets in pixels of [0, 1], by commas, e.g. 1/255,0.1. Default: 0.05,0.1,0.2 for "
        "mnist, else 1/255,2/255,8/255. '' for clean only (analyze) or no curves beside --epsilon (harden)."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(help="Images at once.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Cores of each process; results keep to it. Default: all, up to 8.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice.")]
Output = Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<model>-<data>-<hash>.")]
Force = Annotated[bool, typer.Option("--force", help="Replace another run in the folder.")]
SpecFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Repeat the run of this spec.toml, or do those of a list."),
]
PLAIN: dict[str, object] = {
    **{"model": EMBEDDED_MODEL, "weights": None, "mean": None, "std": None, "data": None, "split": "test"},
    **{"limit": None, "resize": None, "skip_bad": False, "epsilons": None, "device": "auto"},
    **{"batch_size": 256, "threads": None, "seed": 0},
}
"""The options that all runs share, where a spec does not say."""


def subject_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options that all runs share say in a spec; paths absolute: a run is found from any folder."""
    model, weights, split = given["model"], given["weights"], given["split"]
    data = str(given["data"] or default_data(model))
    epsilons = given["epsilons"]
    budgets = default_epsilons(data) if epsilons is None else epsilons
    return {
        **({} if given["threads"] is None else {"threads": given["threads"]}),
        "model": own.absolute(model),
        "weights": weights
        if weights in (None, TORCHVISION)
        else str(Path(os.path.expanduser(weights)).absolute()),
        "mean": parse_numbers("mean", given["mean"]),
        "std": parse_numbers("std", given["std"]),
        "data": catalogue.absolute(data),
        "split": split,
        "limit": min(DEFAULT_LIMIT, count_images(data, split)) if given["limit"] is None else given["limit"],
        "resize": given["resize"],
        "skip_bad": given["skip_bad"],
        "epsilons": [format_epsilon(epsilon) for epsilon in parse_epsilons(budgets)],
        "device": str(parse_device(given["device"])),
        "batch_size": given["batch_size"],
        "seed": given["seed"],
    }


def middle(epsilons: Sequence[str]) -> str | None:
    """What is hardened against, of the budgets of the curves, where that is not said."""
    grid = parse_epsilons(epsilons)
    return format_epsilon(grid[len(grid) // 2]) if grid else None


def split_commas(text: str | Sequence[Any]) -> list[Any]:
    """The parts of a comma-separated option, or of a list; none for an empty text."""
    if not isinstance(text, str):
        return list(text)
    return [part.strip() for part in text.split(",")] if text.strip() else []


def parse_numbers(name: str, text: str | Sequence[float] | None) -> list[float] | None:
    """Numbers separated by commas, such as the values of --mean, or in a list; None stays None."""
    try:
        return None if text is None else [float(part) for part in split_commas(text)]
    except ValueError:
        raise InputError(
            f"--{name} is not a list of numbers",
            given=text,
            allowed="one number per channel",
            fix="e.g. 0.1307",
        ) from None


def parse_points(text: str) -> float:
    """A share: "1pp" (percentage points) or "0.01"."""
    number, points = (text[:-2], True) if text.endswith("pp") else (text, False)
    try:
        share = float(number) / (100 if points else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise InputError(
            "this is not a share",
            given=text,
            allowed='such as "1pp" or "0.01", from 0 to below 1',
            fix="write 1pp for one percentage point",
        )
    return share
