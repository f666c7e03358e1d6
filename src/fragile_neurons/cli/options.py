"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from fragile_neurons.errors import InputError

Model = Annotated[str, typer.Option(help="A model by name; see `fragile-neurons models`.")]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="A safetensors file for the model.")]
Data = Annotated[str, typer.Option(help="A data set by name; see `fragile-neurons data list`.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice.")]


def parse_device(text: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, or `cuda:N`; auto takes the GPU where there is one."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    usable = kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())
    if not usable or (number and not number.isdecimal()):
        raise InputError(
            "the device cannot be used",
            given=text,
            allowed="auto, cpu, cuda" + ("" if torch.cuda.is_available() else " (no CUDA device here)"),
            fix="use --device cpu",
        )
    return torch.device(text)


def split_commas(text: str) -> list[str]:
    """The parts of a comma-separated option; none for an empty text."""
    return [part.strip() for part in text.split(",")] if text.strip() else []


def parse_numbers(name: str, text: object) -> list[float] | None:
    """Numbers separated by commas, such as the values of --mean; None stays None."""
    try:
        return None if text is None else [float(part) for part in split_commas(str(text))]
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
