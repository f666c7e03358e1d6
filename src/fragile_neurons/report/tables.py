"""summary.md: a run's main tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fragile_neurons.report import evaluation, hardening, sentences
from fragile_neurons.report.sentences import number, points
from fragile_neurons.runs.run import Run

MOST_ROWS = 10

Columns = dict[str, Callable[[dict[str, Any]], str]]


def top_neurons(run: Run, column: str, epsilon: float | None, count: int = MOST_ROWS) -> list[dict[str, Any]]:
    """The rows of neurons.csv at one epsilon with the largest values in a column."""
    rows = [row for row in run.neurons.to_pylist() if row["epsilon"] == epsilon and row[column] is not None]
    return sorted(rows, key=lambda row: (-row[column], row["layer"], row["channel"]))[:count]


def last_epsilon(run: Run) -> float | None:
    """The largest epsilon of the run; None for a clean run."""
    values = [value for value in run.neurons["epsilon"].to_pylist() if value is not None]
    return max(values) if values else None


def markdown(run: Run) -> str:
    """The whole of summary.md."""
    parts = {"evaluate": _evaluation, "harden": _hardening}.get(run.command, _analysis)(run)
    checks = [evaluation.check_row(check) for check in run.summary["checks"]]
    return "\n\n".join([*parts, "## Checks", table(evaluation.CHECK_HEADER, checks)]) + "\n"


def _evaluation(run: Run) -> list[str]:
    found = run.summary
    data, (header, rows) = found["data"], evaluation.accuracy_rows(found)
    return [
        f"# {escape(found['model']['name'])} on {escape(data['name'])}: is it really robust?",
        f"{data['n']:,} {escape(data['split'])} images. Accuracies with 95 % Wilson intervals.",
        "## Accuracy",
        table(
            header, [["none", *[sentences.accuracy(found["clean_accuracy"])] * (len(header) - 2), ""], *rows]
        ),
        escape(evaluation.PASSES_EXPLAINED),
        escape(evaluation.smallest(found)),
    ]


def _hardening(run: Run) -> list[str]:
    found = run.summary
    return [
        f"# {escape(found['model']['name'])} on {escape(found['data']['name'])}: can it be mended?",
        escape(hardening.described(found)),
        f"**{escape(hardening.verdict(found))}**",
        "## Before and after",
        table(hardening.HEADER, hardening.difference_rows(found)),
        "Accuracies with 95 % Wilson intervals; differences are of the same images, with Tango intervals.",
        "## Beside other ways to spend the time",
        table(hardening.OTHERS, hardening.other_rows(found)),
        *_tried(found),
        f"## By class, PGD-20 x 5 at {escape(found['hardening']['epsilon'])}",
        table(hardening.CLASSES, hardening.class_rows(found)),
        "## Controls",
        *(f"- {escape(line)}" for line in hardening.control_lines(found)),
    ]


def _tried(found: dict[str, Any]) -> list[str]:
    """The strengths of what was fitted, where anything was."""
    rows = hardening.tried_rows(found)
    return ["## Chosen on validation images", table(hardening.TRIED, rows)] if rows else []


def _analysis(run: Run) -> list[str]:
    found, epsilon = run.summary, last_epsilon(run)
    data, strongest = found["data"], f"FGSM {found['spec']['epsilons'][-1]}" if epsilon else "no attack"
    layers = ", ".join(f"{layer['name']} ({layer['neurons']} neurons)" for layer in found["layers"])
    parts = [
        f"# {escape(found['model']['name'])} on {escape(data['name'])}",
        f"{data['n']:,} {escape(data['split'])} images; {escape(layers)}; site {found['site']}. "
        "Accuracies with 95 % Wilson intervals; drops in percentage points (pp) with 95 % intervals. "
        + escape(sentences.sweep(found)),
        "## Accuracy",
        table(
            ["attack", "epsilon", "accuracy"],
            [["none", "0", sentences.accuracy(found["clean_accuracy"])]]
            + [[row["attack"], row["epsilon"], sentences.accuracy(row)] for row in found["robust_accuracy"]],
        ),
        "## Verdicts of nodal dropout",
        table(
            ["layer", "condition", "verdicts"],
            [[row["layer"], sentences.condition(row), sentences.verdicts(row)] for row in found["dropout"]],
        ),
        f"## Largest clean margin drop ({strongest})",
        table(FRAGILE, [_cells(row, FRAGILE) for row in top_neurons(run, "margin_drop", epsilon)]),
    ]
    if epsilon:
        parts += [
            f"## Most targeted neurons ({strongest})",
            table(TARGETED, [_cells(row, TARGETED) for row in top_neurons(run, "share", epsilon)]),
            escape(sentences.patching(found)),
            escape(sentences.cumulative(found)),
            "## Does the attack strike the fragile neurons?",
            escape(sentences.HEADLINES_EXPLAINED),
            *(f"- {escape(sentences.headline(pair))}" for pair in found["correlation"] if pair["headline"]),
        ]
    return parts


def _neuron(row: dict[str, Any]) -> str:
    return f"{row['layer']}:{row['channel']}"


def _drop(prefix: str) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        drop, low, high = (row[f"{prefix}_{name}"] for name in ("drop", "low", "high"))
        return "–" if drop is None else f"{points(drop)} [{points(low)}, {points(high)}]"

    return cell


FRAGILE: Columns = {
    "neuron": _neuron,
    "margin drop": lambda row: number(row["margin_drop"]),
    "clean drop, pp": _drop("clean"),
    "verdict": lambda row: row["clean_verdict"],
    "FGSM drop, pp": _drop("adv"),
    "FGSM verdict": lambda row: row["adv_verdict"] or "–",
}
TARGETED: Columns = {
    "neuron": _neuron,
    "share": lambda row: f"{100 * row['share']:.1f} %",
    "excess": lambda row: number(row["excess"], 3),
    "wins": lambda row: f"{100 * row['wins']:.1f} %",
    "rescue": lambda row: sentences.percent(row["rescue"]),
    "inject": lambda row: sentences.percent(row["inject"]),
    "clean drop, pp": lambda row: points(row["clean_drop"]),
    "verdict": lambda row: row["clean_verdict"],
}


def _cells(row: dict[str, Any], columns: Columns) -> list[str]:
    return [cell(row) for cell in columns.values()]


def table(header: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these texts."""
    titles = list(header)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(escape(cell) for cell in line)} |" for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\|`*_<>[]&~$#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.splitlines())


def write_markdown(run: Run, path: Path) -> None:
    """Write summary.md."""
    path.write_text(markdown(run), encoding="utf-8")
