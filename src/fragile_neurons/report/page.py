"""report.html: one file that shows a run, offline; compare.html: several runs beside each other."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.errors import InputError
from fragile_neurons.report import evaluation, hardening, sentences
from fragile_neurons.report.cells import cell
from fragile_neurons.report.charts import figures
from fragile_neurons.report.datasets import (
    Dataset,
    accuracy_rows,
    attack_names,
    datasets,
    named,
    number,
    written_epsilons,
)
from fragile_neurons.report.drawing import Figure
from fragile_neurons.report.pictures import pairs, sheets
from fragile_neurons.report.tables import FRAGILE, TARGETED, Columns, last_epsilon, top_neurons
from fragile_neurons.runs.run import Run

TOP = 10
MOST_ROWS = 5_000  # of a table on the page; the run's files have all
SECTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "accuracy": ("How robust is it?", ("accuracy",), ("accuracy",)),
    "dropout": (
        "Which neurons are fragile?",
        ("dropout", "cumulative", "patching"),
        ("neurons", "cumulative"),
    ),
    "targeting": (
        "Which neurons does the attack strike?",
        ("targeting", "fooled-and-resisted", "targeting-by-class"),
        ("targeting", "by class"),
    ),
    "relation": ("Does it strike the fragile ones?", ("relation",), ("correlation",)),
    "classes": ("Which classes suffer?", ("confusion", "classes"), ("confusion", "classes")),
    "hardening": (
        "Can it be mended?",
        ("gains", "strengths", "controls"),
        ("gains", "strengths", "controls"),
    ),
}
"""Title, charts and tables of each section, where the run has them."""


def page(run: Run) -> str:
    """The whole of report.html."""
    found, made = run.summary, datasets(run)
    classes, drawn = found["data"].get("classes", []), figures_of(run, made)
    headlines = [pair for pair in found["correlation"] if pair["headline"]]
    first = pages(run)[0][0]
    sections = {
        name: {
            "title": title,
            "figures": {one: drawn[one] for one in charts if one in drawn},
            "tables": {one: made[one] for one in tables if one in made},
        }
        for name, (title, charts, tables) in SECTIONS.items()
    }
    return _render(
        "report.html.j2",
        run=run,
        found=found,
        sections={name: one for name, one in sections.items() if one["figures"]},
        pairs=pairs(run.examples, classes, written_epsilons(found)) if classes else [],
        mapped=max(
            (len(array) for name, array in run.examples.items() if name.startswith("maps/")), default=0
        ),
        headlines=headlines,
        headline=next((pair for pair in reversed(headlines) if pair["layer"] == first), None),
        attack=named(run.spec.shown_attack),
        names=attack_names(found),
        verdict_rows=_verdict_rows(found),
        check_rows=[evaluation.check_row(check) for check in found["checks"]],
        provenance=_provenance(found),
        fragile_rows=_top(run, FRAGILE, "margin_drop"),
        targeted_rows=_top(run, TARGETED, "share"),
        headline_rows=[[pair["layer"], sentences.headline(pair)] for pair in headlines],
        again=f"fragile-neurons {run.command} --spec RUN/spec.toml --output runs/again",
        content=_content(run, made, drawn),
    )


def figures_of(run: Run, made: dict[str, Dataset]) -> dict[str, Figure]:
    """The charts of a run's datasets, with what they need to know of the run."""
    spec, classes = run.summary["spec"], run.summary["data"].get("classes")
    chance = 1 / len(classes) if classes else None
    transfer = spec.get("mode") == "transfer"
    rule = Rule(spec.get("verdict_rule", "tested"), spec.get("tolerance", 0.01))
    return figures(made, rule=rule, chance=chance, transfer=transfer)


def pages(run: Run) -> tuple[list[str | None], list[str | None]]:
    """The layers and the epsilons, of which one each is shown at a time; None where there is none."""
    spec = run.summary["spec"]
    layers = [layer["name"] for layer in run.summary["layers"]]
    epsilons = (
        [spec["epsilon"]] if run.command == "harden" else [one for one in spec["epsilons"] if number(one)]
    )
    return layers or [None], epsilons or [None]


def _top(run: Run, columns: Columns, by: str) -> tuple[list[str], list[list[str]]]:
    """A header, and the neurons of all layers with the largest values in a column, at the largest epsilon."""
    if run.command != "analyze":
        return [], []
    rows = top_neurons(run, by, last_epsilon(run), TOP)
    return list(columns), [[make(row) for make in columns.values()] for row in rows]


def _verdict_rows(found: dict[str, Any]) -> list[list[str]]:
    return [[row["layer"], sentences.condition(row), sentences.verdicts(row)] for row in found["dropout"]]


def _provenance(found: dict[str, Any]) -> list[list[str]]:
    """What the numbers rest on: weights, data, versions, machine, spec."""
    model, data = found["model"], found["data"]
    asked = {name: value for name, value in found["spec"].items() if value is not None and name != "found"}
    return [
        ["model", f"{model['name']}, {model['parameters']:,} parameters, sha256 {model['weights_sha256']}"],
        ["data", f"{data['name']}, {data['split']}, {data['n']:,} images, sha256 {data['sha256']}"],
        *([["left out", ", ".join(data["excluded"])]] if data["excluded"] else []),
        *([name.replace("_", " "), value] for name, value in found["environment"].items()),
        *([name.replace("_", " "), _listed(value)] for name, value in asked.items()),
    ]


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _content(run: Run, made: dict[str, Dataset], drawn: dict[str, Figure]) -> dict[str, Any]:
    """What the script of a page works on."""
    layers, epsilons = pages(run)
    shown = {"layers": layers, "epsilons": epsilons, "sheets": sheets(run.examples)}
    return shown | _drawn(made, drawn)


def _drawn(made: dict[str, Dataset], drawn: dict[str, Figure]) -> dict[str, Any]:
    """The tables and charts of a page."""
    return {
        "datasets": {name: _columns(one) for name, one in made.items()},
        "figures": {name: {"spec": one.spec, "dataset": one.dataset} for name, one in drawn.items()},
    }


def _columns(made: Dataset) -> dict[str, Any]:
    """Rows as columns; texts, of which there are few, by their places in a list."""
    columns: dict[str, Any] = {}
    for name in made.columns:
        values = [row[name] for row in made.rows]
        if any(isinstance(value, str) for value in values):
            texts = list(dict.fromkeys(values))
            places = {text: place for place, text in enumerate(texts)}
            columns[name] = {"texts": texts, "places": [places[value] for value in values]}
        else:
            columns[name] = {"values": values}
    return {"title": made.title, "paged": made.paged, "columns": columns}


def compared(runs: Sequence[Run], output: Path) -> str:
    """The whole of compare.html: accuracies, verdicts, correlations and hardening of several runs."""
    if len(runs) < 2:
        raise InputError(
            "there is nothing to compare",
            given=f"{len(runs)} run",
            allowed="two or more",
            fix="name more runs",
        )
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise InputError(
            "a run is named twice",
            given=", ".join(map(str, folders)),
            allowed="each run once",
            fix="leave the second out",
        )
    names = _distinct(folders)
    rows = [
        {**row, "attack": f"{name}, {row['attack']}"}
        for name, run in zip(names, runs, strict=True)
        for row in accuracy_rows(run)
    ]
    found = [run.summary for run in runs]
    made = {"accuracy": Dataset("Accuracy against epsilon", rows)}
    drawn = figures(made)
    links = [quote(os.fsencode(os.path.relpath(run.folder / "report.html", output.parent))) for run in runs]
    content = {"layers": [None], "epsilons": [None], "sheets": {}} | _drawn(made, drawn)
    return _render(
        "compare.html.j2",
        runs=list(zip(names, links, found, strict=True)),
        verdict_rows=[
            [name, *row] for name, one in zip(names, found, strict=True) for row in _verdict_rows(one)
        ],
        headline_rows=[
            [name, sentences.headline(pair)]
            for name, one in zip(names, found, strict=True)
            for pair in one["correlation"]
            if pair["headline"]
        ],
        hardening_rows=[
            [name, hardening.verdict(one)] for name, one in zip(names, found, strict=True) if one["hardening"]
        ],
        figures=drawn,
        tables=made,
        content=content,
    )


def _distinct(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as it takes to tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _render(name: str, **context: Any) -> str:
    return _templates().get_template(name).render(**context)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("fragile_neurons.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "named": named}
    environment.globals |= {
        "most_rows": MOST_ROWS,
        "sentences": sentences,
        "evaluation": evaluation,
        "hardening": hardening,
        "embedded": embedded,
        "asset": asset,
        "library": library,
    }
    return environment


def embedded(content: Any) -> Markup:
    """JSON that no text in it can leave: it stands in a script element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def asset(name: str) -> Markup:
    """A file beside the templates, as it is: it is ours."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


@cache
def library() -> Markup:
    """Vega, Vega-Lite and vega-embed."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))


def write_page(run: Run, path: Path) -> None:
    """Write report.html."""
    path.write_text(page(run), encoding="utf-8")
