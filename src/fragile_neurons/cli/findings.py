"""What a finished run looks like on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fragile_neurons.cli.console import console
from fragile_neurons.probe import FLAGGED
from fragile_neurons.report import evaluation, hardening, sentences
from fragile_neurons.report.tables import FRAGILE, TARGETED, Columns, last_epsilon, top_neurons
from fragile_neurons.runs.run import Run

ROWS = 5
COLOURS = {
    "fragile": "red",
    "antifragile": "magenta",
    "robust": "green",
    "null": "dim",
    "undecided": "yellow",
}


def show_run(run: Run) -> None:
    """What a run found, and where it is."""
    {"evaluate": _show_evaluation, "harden": _show_hardening}.get(run.command, _show_analysis)(run)
    files = "hardened.safetensors, gains.csv" if run.command == "harden" else "images.parquet"
    console.print(Text(f"\nThe run is in {run.folder} (summary.md, summary.json, {files}, ...)"))
    console.print(Text(f"To look at it: {run.folder / 'report.html'}"))


def _show_hardening(run: Run) -> None:
    """Before and after, the other ways to spend the time, the controls, the verdict, the checks."""
    found = run.summary
    data = found["data"]
    title = f"{found['model']['name']} on {data['n']:,} {data['split']} images of {data['name']}"
    console.print(_table(f"{title}, before and after", hardening.HEADER, hardening.difference_rows(found)))
    if found["hardening"]["fits"]:
        title = f"Beside other ways to spend the time, epsilon {found['hardening']['epsilon']}"
        console.print(_table(title, hardening.OTHERS, hardening.other_rows(found)))
    for line in (hardening.described(found), *hardening.control_lines(found)):
        console.print(Text(line, style="dim"), soft_wrap=False)
    console.print(Text(f"\n{hardening.verdict(found)}", style="bold"), soft_wrap=False)
    _show_checks(found)


def _table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _show_checks(found: dict[str, Any]) -> None:
    console.print(
        Text(f"\nCan these numbers be trusted? Checks: {evaluation.check_counts(found)}", style="bold")
    )
    _show_list(
        Text(line, style="red" if "(fail)" in line else "yellow") for line in evaluation.flagged(found)
    )


def _show_list(items: Iterable[str | Text]) -> None:
    """One below the other, wrapped beside their dash."""
    grid = Table.grid(padding=(0, 1))
    for item in items:
        grid.add_row(" -", Text(item) if isinstance(item, str) else item)
    console.print(grid, soft_wrap=False)


def _show_evaluation(run: Run) -> None:
    """Accuracy of each attack and of the worst case; how small an attack fools; the checks."""
    found = run.summary
    data, (header, rows) = found["data"], evaluation.accuracy_rows(found)
    images = f"{data['n']:,} {data['split']} images of {data['name']}"
    clean = sentences.accuracy(found["clean_accuracy"])
    title = Text(f"{found['model']['name']} on {images}: clean accuracy {clean}", style="bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(cell, style="bold" if row[0] == rows[-1][0] else "") for cell in row))
    console.print(table)
    console.print(Text(evaluation.PASSES_EXPLAINED, style="dim"), soft_wrap=False)
    console.print(Text(evaluation.smallest(found)), soft_wrap=False)
    _show_checks(found)


def _show_analysis(run: Run) -> None:
    """A verdict strip, the most fragile and most targeted neurons, the headlines."""
    found, epsilon = run.summary, last_epsilon(run)
    data = found["data"]
    lines = [f"clean accuracy     {sentences.accuracy(found['clean_accuracy'])}"]
    lines += [f"{'FGSM ' + row['epsilon']:<18} {sentences.accuracy(row)}" for row in found["robust_accuracy"]]
    lines += [
        f"{row['layer'] + ', ' + sentences.condition(row):<18} {sentences.verdicts(row)}"
        for row in found["dropout"]
    ]
    lines += [
        f"{check['name']:<18} {check['status']}: {evaluation.explained(check)}"
        for check in found["checks"]
        if check["status"] in FLAGGED
    ]
    if found["spec"]["found"]["sweep"] != "exact":
        lines.append(sentences.sweep(found))
    images = f"{data['n']:,} {data['split']} images of {data['name']}"
    dtype = "" if found["spec"]["dtype"] == "float32" else f", {found['spec']['dtype']}"
    title = Text(f"{found['model']['name']} on {images}, site {found['site']}{dtype}")
    console.print(Panel(Text("\n".join(lines)), title=title, expand=False), soft_wrap=False)
    strongest = f"FGSM {found['spec']['epsilons'][-1]}" if epsilon else "no attack"
    _show(run, f"Largest clean margin drop; {strongest}", FRAGILE, "margin_drop", epsilon)
    if epsilon:
        _show(run, f"Most targeted neurons, {strongest}", TARGETED, "share", epsilon)
        console.print(Text(f"{sentences.patching(found)}\n"), soft_wrap=False)
        console.print(Text(f"{sentences.cumulative(found)}\n"), soft_wrap=False)
        console.print(Text("Does the attack strike the fragile neurons?", style="bold"))
        console.print(Text(sentences.HEADLINES_EXPLAINED, style="dim"), soft_wrap=False)
        _show_list(sentences.headline(pair) for pair in found["correlation"] if pair["headline"])


def _show(run: Run, title: str, columns: Columns, by: str, epsilon: float | None) -> None:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name)
    for row in top_neurons(run, by, epsilon, ROWS):
        cells = [cell(row) for cell in columns.values()]
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in cells))
    console.print(table)
