"""The charts of a run for a paper, and its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import vl_convert
from pyarrow import csv

from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.norms import format_epsilon, parse_epsilon
from fragile_neurons.report.cells import cell
from fragile_neurons.report.datasets import Dataset, datasets
from fragile_neurons.report.drawing import Figure
from fragile_neurons.report.page import figures_of, pages
from fragile_neurons.report.tables import table
from fragile_neurons.runs.export import write_file
from fragile_neurons.runs.run import Run

Chart = dict[str, Any]

FORMATS: dict[str, Callable[[Chart], bytes]] = {
    "svg": lambda chart: vl_convert.vegalite_to_svg(chart).encode(),
    "pdf": lambda chart: vl_convert.vegalite_to_pdf(chart),
    "png": lambda chart: vl_convert.vegalite_to_png(chart, scale=2),
}


def write_figures(
    run: Run,
    folder: Path,
    formats: Sequence[str] = ("svg",),
    *,
    layer: str | None = None,
    epsilon: str | None = None,
) -> list[Path]:
    """Write NAME.FORMAT of each chart, and NAME.md, .csv, .tex of each table; their paths.

    layer, epsilon: which page of a run that has several; by default the first layer, the largest epsilon.
    """
    for name in formats:
        check_choice("format", name, list(FORMATS))
    layers, epsilons = pages(run)
    at = None if epsilon is None else format_epsilon(parse_epsilon(epsilon))
    chosen = {"layer": layer or layers[0], "epsilon": at or epsilons[-1]}
    for name, allowed in (("layer", layers), ("epsilon", epsilons)):
        if chosen[name] not in allowed:
            raise InputError(
                f"the run has no such {name}",
                given=chosen[name],
                allowed=", ".join(one for one in allowed if one) or f"none: this run has no {name}s",
                fix=f"choose one of them with --{name}, or leave it out",
            )
    made = datasets(run)
    shown = {name: one.page(**chosen) for name, one in made.items()}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures_of(run, made).items():
        for format_name in formats:
            content = FORMATS[format_name](_drawn(figure, shown[figure.dataset], chosen))
            written.append(_write(folder / f"{name}.{format_name}", content))
    for name, dataset in shown.items():
        stem = folder / name.replace(" ", "-")
        lines = [[cell(row[column], column) for column in dataset.columns] for row in dataset.rows]
        written += [
            _write(stem.with_suffix(".md"), (table(dataset.columns, lines) + "\n").encode()),
            _write(stem.with_suffix(".tex"), latex(dataset.columns, lines).encode()),
            _write(stem.with_suffix(".csv"), _csv(dataset)),
        ]
    return written


def _drawn(figure: Figure, dataset: Dataset, chosen: Mapping[str, str | None]) -> Chart:
    """A chart that says which page of the run it shows."""
    drawn = figure.drawn(dataset.rows)
    where = {"layer": chosen["layer"], "epsilon": chosen["epsilon"] and f"epsilon {chosen['epsilon']}"}
    said = [text for name in dataset.paged if (text := where[name])]
    title = {"title": {"text": ", ".join(said)}} if said else {}
    return {**drawn, **title, "config": {**drawn["config"], "background": "white"}}


def _write(path: Path, content: bytes) -> Path:
    write_file(path, lambda neighbour: neighbour.write_bytes(content))
    return path


def _csv(dataset: Dataset) -> bytes:
    sink = pa.BufferOutputStream()
    columns = {name: [row[name] for row in dataset.rows] for name in dataset.columns}
    csv.write_csv(pa.table(columns), sink, csv.WriteOptions(quoting_style="needed"))
    return bytes(sink.getvalue())


MARKS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(MARKS.get(letter, letter) for letter in " ".join(text.split()))


def latex(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A tabular of these texts."""
    shown = [" & ".join(_escaped(text) for text in line) for line in (header, *lines)]
    rows = [f"{{}}{line}" for line in shown]  # a [ or * at its start would be an option of the line before
    body = " \\\\\n".join(rows)
    return f"\\begin{{tabular}}{{{'l' * len(header)}}}\n{body} \\\\\n\\end{{tabular}}\n"
