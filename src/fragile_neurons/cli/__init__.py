"""The command `fragile-neurons`: one file per command; each parses, calls and prints."""

from __future__ import annotations

import logging
import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from typer.core import TyperGroup

from fragile_neurons.cli import data
from fragile_neurons.cli.analyze import analyze
from fragile_neurons.cli.console import console, errors
from fragile_neurons.cli.evaluate import evaluate
from fragile_neurons.cli.harden import harden
from fragile_neurons.cli.models import layers, models
from fragile_neurons.cli.plan import plan
from fragile_neurons.cli.report import compare, figures, report
from fragile_neurons.cli.runs import resume, status, verify
from fragile_neurons.cli.train import train
from fragile_neurons.errors import FragileNeuronsError

INTERRUPTED = 130


class Commands(TyperGroup):
    """The commands; one that is interrupted says how it goes on."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            errors.print("\n  ".join(["interrupted", *getattr(stop, "__notes__", [])]))
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    help="Through which neurons does an adversarial attack come, and can they be mended?\n\n"
    "Example: fragile-neurons analyze",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"fragile-neurons {version('fragile-neurons')}")
        raise typer.Exit


@app.callback()
def everywhere(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say it and end.")
    ] = False,
) -> None:
    """What every command has."""


for command in (
    *(analyze, evaluate, harden, plan),
    *(report, figures, compare),
    *(resume, status, verify),
    *(layers, models, train),
):
    app.command()(command)
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command; a user's mistake becomes one message and an exit code, never a traceback."""
    logging.basicConfig(
        format="%(message)s", handlers=[RichHandler(console=errors, show_time=False, show_path=False)]
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(standalone_mode=True)
    except FragileNeuronsError as error:
        errors.print(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:  # a disk or a network that failed outside of a run folder
        errors.print(f"error: {error}")
        sys.exit(FragileNeuronsError.exit_code)
