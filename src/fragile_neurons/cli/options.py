"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

from typing import Annotated

import typer

from fragile_neurons.errors import InputError

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
Data = Annotated[str, typer.Option(help="A name (see `fragile-neurons data list`), folder:PATH or npz:PATH.")]
Split = Annotated[str, typer.Option(help="test, val or train.")]
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
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice.")]


def split_commas(text: str) -> list[str]:
    """The parts of a comma-separated option; none for an empty text."""
    return [part.strip() for part in text.split(",")] if text.strip() else []


def parse_numbers(name: str, text: object) -> list[float] | None:
    """Numbers separated by commas, such as the values of --mean; None stays None."""
    try:
        return None if text is None else [float(part) for part in str(text).split(",")]
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
        return float(number) / (100 if points else 1)
    except ValueError:
        raise InputError(
            "this is not a share",
            given=text,
            allowed='such as "1pp" or "0.01"',
            fix="write 1pp for one percentage point",
        ) from None
