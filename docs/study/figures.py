"""The figures of the study, from the small files of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import numpy as np
from kept import ATTACKS, Found, Kept, runs
from relations import HEADLINES, corrected, over_networks

from fragile_neurons.analysis.verdicts import VERDICTS
from fragile_neurons.hardening.trials import SHUFFLED
from fragile_neurons.norms import parse_epsilon
from fragile_neurons.report import hardening
from fragile_neurons.report.drawing import BLUE, GREEN, GREY, ORANGE, VERMILION, verdict_colour

PALE = "#cccccc"
COLUMNS, WIDE, HIGH = 4, 170, 120  # of small multiples
CONFIG = {
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": "#00000022"},
    "axis": {"gridColor": "#88888833", "titleFontWeight": "normal", "labelLimit": 240},
    "header": {"title": None, "labelFontSize": 11},
    "legend": {"orient": "top", "title": None, "labelLimit": 400, "symbolOpacity": 1},
}
Rows = Sequence[dict[str, Any]]


def _named(runs_: Sequence[Kept]) -> list[str]:
    return list(dict.fromkeys(run.name for run in runs_))


def _base(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _bounds(row: Found) -> dict[str, float]:
    low, high = row["ci95"]
    return {"value": row["value"], "low": low, "high": high}


def _attack(*names: str) -> alt.Color:
    return alt.Color("attack:N", scale=alt.Scale(domain=list(names), range=[BLUE, VERMILION, GREEN]))


def robustness() -> alt.TopLevelMixin:
    """Accuracy against epsilon, a panel a network."""
    rows = []
    for run in runs("evaluate"):
        clean = _bounds(run.summary["clean_accuracy"])
        rows += [{"network": run.name, "attack": one, "budget": 0.0, **clean} for one in ATTACKS.values()]
        for row in run.summary["robust_accuracy"]:
            if attack := ATTACKS.get(row["attack"]):
                at = {"attack": attack, "budget": float(parse_epsilon(row["epsilon"]))}
                rows.append({"network": run.name, **at, **_bounds(row)})
    base = _base(rows).encode(
        x=alt.X("budget:Q", title="epsilon", axis=alt.Axis(tickCount=4)), color=_attack(*ATTACKS.values())
    )
    value = alt.Y("value:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    panel = alt.layer(
        base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title="accuracy"), y2="high:Q"),
        base.mark_line().encode(y=value),
        base.mark_point(filled=True, size=30).encode(y=value),
    ).properties(width=WIDE, height=HIGH)
    return _panels(panel, _named(runs("evaluate"))).resolve_scale(x="independent")


def _panels(panel: alt.LayerChart | alt.Chart, names: Sequence[str]) -> alt.FacetChart:
    return panel.facet(alt.Facet("network:N", sort=list(names)), columns=COLUMNS)


def verdicts() -> alt.TopLevelMixin:
    """Of the neurons of the first convolution: clean, and attacked with the largest epsilon."""
    rows = []
    for run in runs("analyze", layer="first"):
        for row in run.summary["dropout"]:
            if row["epsilon"] in (None, run.largest_epsilon):
                where = "clean" if row["epsilon"] is None else "FGSM, the largest epsilon"
                for place, verdict in enumerate(VERDICTS):
                    count = {"verdict": verdict, "neurons": row["verdicts"][verdict], "place": place}
                    rows.append({"network": run.name, "condition": where, **count})
    return (
        _base(rows)
        .mark_bar()
        .encode(
            x=alt.X("neurons:Q", stack="normalize", title="share of the neurons", axis=alt.Axis(format="%")),
            y=alt.Y("network:N", sort=_named(runs("analyze", layer="first")), title=None),
            color=verdict_colour("verdict"),
            order="place:Q",
        )
        .properties(width=280, height=alt.Step(18))
        .facet(alt.Facet("condition:N", sort=["clean"]), columns=2)
    )


SHOWN, NOT_SHOWN = "shown (p over networks at most 0.05)", "not shown"
UNRELIABLE, GIVEN = "too noisy to ask (reliability below 0.3)", "given weight norm and energy"
MEAN_RHO = "mean over networks"


def correlations() -> alt.TopLevelMixin:
    """The two headlines at the largest epsilon, coloured by whether p over networks is at most 0.05.

    Intervals for new images; below them the means over networks, with their intervals.
    """
    rows = []
    for (x, y), question in HEADLINES.items():
        again = corrected(x, y)
        for run in runs("analyze", layer="first"):
            for pair in run.summary["correlation"]:
                if (pair["x"], pair["y"], pair["epsilon"]) != (x, y, run.largest_epsilon):
                    continue
                low, high = pair["ci95"] or (None, None)
                p = again.get((run.name, run.largest_epsilon))
                answer = UNRELIABLE if p is None else SHOWN if p <= 0.05 else NOT_SHOWN
                rhos = {
                    "rho": pair["spearman"],
                    "partial": pair["partial_spearman"],
                    "low": low,
                    "high": high,
                }
                rows.append({"network": run.name, "question": question, "answer": answer, **rhos})
        if found := over_networks(x, y):
            mean = found.raw
            rhos = {"rho": mean.rho, "partial": found.given.rho, "low": mean.low, "high": mean.high}
            rows.append({"network": MEAN_RHO, "question": question, "answer": MEAN_RHO, **rhos})
    names = [*_named(runs("analyze", layer="first")), MEAN_RHO]
    base = alt.Chart().encode(
        y=alt.Y("network:N", sort=names, title=None),
        color=alt.Color(
            "answer:N",
            scale=alt.Scale(
                domain=[SHOWN, NOT_SHOWN, UNRELIABLE, MEAN_RHO, GIVEN],
                range=[VERMILION, GREY, PALE, "black", BLUE],
            ),
        ),
    )
    scale = alt.Scale(domain=[-1, 1])
    low = alt.X("low:Q", title="Spearman's rho", scale=scale)
    panel = alt.layer(
        alt.Chart().mark_rule(strokeDash=[2, 3], color=GREY).encode(x=alt.datum(0)),
        base.mark_rule(strokeWidth=2).encode(x=low, x2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x="rho:Q"),
        base.mark_tick(thickness=2, size=12).encode(x="partial:Q", color=alt.datum(GIVEN)),
        data=alt.InlineData(values=rows),
    ).properties(width=280, height=17 * len(names))
    return panel.facet(alt.Facet("question:N"), columns=2)


def neurons() -> alt.TopLevelMixin:
    """Fragility against targeting, a dot a neuron of the first convolution, at the largest epsilon."""
    rows = []
    for run in runs("analyze", layer="first"):
        for row in run.neurons:
            if row["excess"] is not None:
                kept = {name: row[name] for name in ("margin_drop", "excess", "channel")}
                rows.append({"network": run.name, "verdict": row["clean_verdict"], **kept})
    panel = (
        _base(rows)
        .mark_point(filled=True, size=30, opacity=0.8)
        .encode(
            x=alt.X("margin_drop:Q", title="clean margin drop", axis=alt.Axis(tickCount=4)),
            y=alt.Y("excess:Q", axis=alt.Axis(format="+%", tickCount=5)),
            color=verdict_colour("verdict"),
        )
        .properties(width=WIDE, height=HIGH)
    )
    return _panels(panel, _named(runs("analyze", layer="first"))).resolve_scale(x="independent")


ORDERS = {"fragility": "in order of fragility", "targeting": "in order of targeting", "random": "at random"}


def cumulative() -> alt.TopLevelMixin:
    """Neurons dropped together under FGSM of the largest epsilon: accuracy against how many."""
    rows = []
    for run in runs("analyze", layer="first"):
        for row in run.summary["cumulative"]:
            if row["epsilon"] != run.largest_epsilon:
                continue
            for order, said in ORDERS.items():
                if order not in row:
                    continue
                found = row[order]
                low, high = found.get("ci95") or (found["lowest"], found["highest"])
                at = {"network": run.name, "order": said, "dropped": row["step"]}
                rows.append({**at, "value": found["value"], "low": low, "high": high})
    scale = alt.Scale(domain=list(ORDERS.values()), range=[VERMILION, BLUE, GREY])
    base = _base(rows).encode(
        x=alt.X("dropped:Q", title="neurons dropped", axis=alt.Axis(tickCount=4)),
        color=alt.Color("order:N", scale=scale),
    )
    percent = alt.Axis(format="%", tickCount=4)
    panel = alt.layer(
        base.mark_area(opacity=0.2).encode(
            y=alt.Y("low:Q", title="accuracy", axis=percent, scale=alt.Scale(zero=True)), y2="high:Q"
        ),
        base.mark_line(point={"size": 18}).encode(y="value:Q"),
    ).properties(width=WIDE, height=HIGH)
    return _panels(panel, _named(runs("analyze", layer="first"))).resolve_scale(x="independent")


def layers() -> alt.TopLevelMixin:
    """What a channel costs and how it is targeted, layer by layer, for each seed."""
    rows, names = [], []
    for run in runs("analyze", layer="all"):
        names = [layer["name"] for layer in run.summary["layers"]]
        for name in names:
            of = [row for row in run.neurons if row["layer"] == name]
            for column, title in (("margin_drop", "clean margin drop"), ("excess", "excess")):
                values = [row[column] for row in of if row[column] is not None]
                lowest, middle, highest = np.quantile(values, [0.1, 0.5, 0.9])
                rows.append(
                    {
                        **{"network": run.name, "layer": name, "what": title},
                        **{"low": lowest, "value": middle, "high": highest},
                    }
                )
    base = _base(rows).encode(
        x=alt.X("layer:N", sort=names, title=None, axis=alt.Axis(labelAngle=-45)),
        xOffset="network:N",
        color=alt.Color("network:N", scale=alt.Scale(range=[BLUE, VERMILION, GREEN])),
    )
    panel = alt.layer(
        base.mark_rule().encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
        base.mark_point(filled=True, size=30).encode(y="value:Q"),
    ).properties(width=640, height=150)
    return panel.facet(row=alt.Row("what:N", sort=["clean margin drop", "excess"])).resolve_scale(
        y="independent"
    )


JUDGED = {"clean": "clean", "pgd": "PGD-20 x 5, both losses", "apgd": "APGD-CE + T"}
KINDS = {"original": BLUE, "hardened": ORANGE, SHUFFLED: "#00000055", "inverted": GREEN}


def hardened() -> alt.TopLevelMixin:
    """Hardened minus original, and the hardened network among its own gains on other neurons."""
    gained, controls, names = [], [], []
    for run in runs("harden"):
        found = run.summary["hardening"]
        names.append(f"{run.name}: {found['rule']}, {run.spec['layer']}")
        for name, row in hardening.gained(found).items():
            if name in JUDGED:
                points = {bound: 100 * value for bound, value in _bounds(row).items()}
                gained.append({"network": names[-1], "attack": JUDGED[name], **points})
        for network, row in hardening.controls(found).items():
            kind = network.partition(" ")[0]
            if kind in KINDS:
                controls.append({"network": names[-1], "kind": kind, **_bounds(row)})
    y = alt.Y("network:N", sort=names, title=None)
    zero = alt.Chart().mark_rule(strokeDash=[2, 3], color=GREY).encode(x=alt.datum(0))
    base = _base(gained).encode(y=y, yOffset="attack:N", color=_attack(*JUDGED.values()))
    signed = alt.Axis(format="+.0f")
    differences = alt.layer(
        zero,
        base.mark_rule().encode(
            x=alt.X("low:Q", title="hardened minus original, pp", axis=signed), x2="high:Q"
        ),
        base.mark_point(filled=True, size=35, opacity=1).encode(x="value:Q"),
    )
    kinds = alt.Scale(domain=list(KINDS), range=list(KINDS.values()))
    beside = (
        _base(controls)
        .mark_tick(thickness=2, size=16)
        .encode(
            y=alt.Y("network:N", sort=names, title=None, axis=alt.Axis(labels=False)),
            x=alt.X("value:Q", title="PGD-10 accuracy", axis=alt.Axis(format="%")),
            color=alt.Color("kind:N", scale=kinds),
        )
    )
    size = {"width": 280, "height": 26 * len(names)}
    return alt.hconcat(differences.properties(**size), beside.properties(**size)).resolve_scale(
        color="independent"
    )


FIGURES: Sequence[Callable[[], alt.TopLevelMixin]] = (
    *(robustness, verdicts, correlations, neurons, cumulative, layers, hardened),
)


def drawn() -> dict[str, dict[str, Any]]:
    """Vega-Lite of each figure, by name."""
    return {make.__name__: {**make().to_dict(), "config": CONFIG} for make in FIGURES}
