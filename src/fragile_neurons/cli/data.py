"""fragile-neurons data list | fetch"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fragile_neurons.cli.console import console, say
from fragile_neurons.data.catalogue import CATALOGUE, find_dataset

app = typer.Typer(
    help="List the data sets, or fetch one.\n\nExample: fragile-neurons data list", no_args_is_help=True
)


@app.command("list")
def list_datasets() -> None:
    """The data sets known by name, their splits, and whether they are on this machine.

    Example: fragile-neurons data list
    """
    table = Table("name", "what", "splits", "licence", "on this machine")
    for dataset in CATALOGUE.values():
        splits = ", ".join(f"{split} {size:,}" for split, size in dataset.sizes.items())
        bundled = f"{' and '.join(dataset.bundled_splits)} (bundled)" if dataset.bundled else "no"
        present = "whole" if dataset.is_fetched else bundled
        table.add_row(dataset.name, dataset.title, splits, dataset.licence, present)
    console.print(table)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A data set by name.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A local folder to look in first.")
    ] = None,
) -> None:
    """Fetch a whole data set and verify its checksums; what is already there is kept.

    Example: fragile-neurons data fetch mnist --from ~/torchvision-data
    """
    find_dataset(name).fetch(say, source)
    console.print(f"{name} is whole and verified")
