"""fragile-neurons report | figures | compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fragile_neurons.cli.console import console
from fragile_neurons.cli.runs import Folder
from fragile_neurons.report.figures import write_figures
from fragile_neurons.report.page import compared
from fragile_neurons.runs.export import write_file
from fragile_neurons.runs.run import open_intact_run
from fragile_neurons.workflows import report as write_report


def report(folder: Folder) -> None:
    """Write report.html of a finished run once more; it opens offline in any browser.

    Example: fragile-neurons report runs/mnist-cnn-mnist-1a2b3c4d
    """
    console.print(str(write_report(folder)))


def figures(
    folder: Folder,
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help="Of svg, pdf, png, with commas between.")
    ] = "svg",
    layer: Annotated[str | None, typer.Option(help="Of a run with several; by default the first.")] = None,
    epsilon: Annotated[str | None, typer.Option(help="By default the largest.")] = None,
    output: Annotated[Path | None, typer.Option(help="A folder; by default DIR/figures.")] = None,
) -> None:
    """Each chart of a run for a paper, and its tables as Markdown, CSV and LaTeX.

    Example: fragile-neurons figures runs/x --format svg,pdf --layer conv2 --epsilon 0.1
    """
    target = folder / "figures" if output is None else output
    written = write_figures(
        open_intact_run(folder),
        target,
        [one.strip() for one in formats.split(",")],
        layer=layer,
        epsilon=epsilon,
    )
    console.print(f"{target}: {', '.join(path.name for path in written)}")


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR...", help="Two or more run folders.")],
    output: Annotated[Path, typer.Option(help="The page.")] = Path("compare.html"),
) -> None:
    """One page for several runs: accuracy, verdicts, correlations and hardening beside each other.

    Example: fragile-neurons compare runs/a runs/b --output compare.html
    """
    text = compared([open_intact_run(folder) for folder in folders], output.resolve())
    write_file(output, lambda path: path.write_text(text, encoding="utf-8"))
    console.print(str(output))
