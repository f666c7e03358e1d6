"""The charts of a run, and of a single result."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import altair as alt

from fragile_neurons.analysis.dropout import Dropout
from fragile_neurons.analysis.patching import Patching
from fragile_neurons.analysis.robustness import RobustAccuracy
from fragile_neurons.analysis.targeting import Targeting
from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.errors import InputError
from fragile_neurons.hardening.trials import HARDENED, ORIGINAL, SHUFFLED
from fragile_neurons.norms import Epsilon, format_epsilon, parse_epsilon
from fragile_neurons.report.datasets import Dataset, named, neuron_rows
from fragile_neurons.report.drawing import (
    CHOSEN,
    GREY,
    HEIGHT,
    ORANGE,
    SKY,
    WIDTH,
    Figure,
    colour,
    diverging,
    percents,
    points,
    rows_of,
)
from fragile_neurons.report.neuron_charts import (
    by_class_figure,
    cumulative_figure,
    groups_figure,
    neuron_figures,
)


def figures(
    made: dict[str, Dataset],
    *,
    rule: Rule | None = None,
    chance: float | None = None,
    transfer: bool = False,
) -> dict[str, Figure]:
    """Every chart that there are rows for, by name.

    rule: of verdicts, by default the default one. chance: an accuracy. transfer: dropped networks saw images
    made on the whole one.
    """
    rule = rule or Rule()
    drawn: dict[str, Callable[[], list[tuple[str, Figure]]]] = {
        "accuracy": lambda: [
            (
                "accuracy",
                _accuracy(*(_values(made["accuracy"], one) for one in ("attack", "network")), chance),
            )
        ],
        "neurons": lambda: neuron_figures(made["neurons"], rule, transfer=transfer),
        "targeting": lambda: [("fooled-and-resisted", groups_figure())],
        "by class": lambda: [("targeting-by-class", by_class_figure())],
        "cumulative": lambda: [
            ("cumulative", cumulative_figure(attacked=len(_values(made["cumulative"], "epsilon")) > 1))
        ],
        "confusion": lambda: [("confusion", _confusion(*_of_confusion(made["confusion"])))],
        "classes": lambda: [("classes", _classes(_values(made["classes"], "series")))],
        "gains": lambda: [("gains", _gains())],
        "strengths": lambda: [("strengths", _strengths())],
        "controls": lambda: [("controls", _controls())],
    }
    return dict(pair for name, make in drawn.items() if name in made for pair in make())


def _values(made: Dataset, column: str) -> tuple[str, ...]:
    """The values of a column, in the order in which they come."""
    return tuple(dict.fromkeys(row[column] for row in made.rows))


@cache
def _accuracy(attacks: tuple[str, ...], networks: tuple[str, ...], chance: float | None) -> Figure:
    base = rows_of("accuracy").encode(
        x=alt.X("budget:Q", title="epsilon, L-infinity", axis=alt.Axis(tickCount=6, format="~r")),
        color=colour("attack", attacks),
    )
    legend = alt.Legend(symbolType="stroke", symbolSize=400) if len(networks) > 1 else None
    dash = alt.StrokeDash("network:N", sort=list(networks), legend=legend)
    percent = alt.Axis(format="%")
    band = base.mark_area(opacity=0.18).encode(
        y=alt.Y("low:Q", title="accuracy", axis=percent, scale=alt.Scale(domain=[0, 1])),
        y2="high:Q",
        detail="network:N",
    )
    line = base.mark_line().encode(y="value:Q", strokeDash=dash)
    marks = base.mark_point(filled=True, size=60).encode(
        y="value:Q",
        shape=alt.Shape("attack:N", scale=alt.Scale(domain=list(attacks))),
        tooltip=["network:N", "attack:N", "epsilon:N", *percents("value", "low", "high"), "n:Q"],
    )
    layers = [band, line, marks]
    if chance is not None:
        at = alt.Chart(alt.InlineData(values=[{"chance": chance}]))
        layers.append(
            at.mark_rule(strokeDash=[2, 3], color=GREY).encode(
                y="chance:Q", tooltip=[alt.Tooltip("chance:Q", format=".1%")]
            )
        )
    return Figure(
        "Accuracy against epsilon",
        "Bands are 95 % Wilson intervals" + ("." if chance is None else "; the dotted line is chance."),
        "accuracy",
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT + 40),
    )


def _of_confusion(made: Dataset) -> tuple[str, int]:
    """The attack, and the largest shift in either direction."""
    return made.rows[0]["attack"], max(1, *(abs(row["shift"]) for row in made.rows))


@cache
def _confusion(attack: str, largest: int) -> Figure:
    return Figure(
        "Where the attack moves the predictions",
        f"Images under {attack} minus images clean, by true class and prediction: blue fewer, orange more.",
        "confusion",
        rows_of("confusion")
        .mark_rect()
        .encode(
            x=alt.X("predicted:N", title="predicted", axis=alt.Axis(labelAngle=-35)),
            y=alt.Y("class:N", title="true class"),
            color=diverging("shift", 0, "images", domain=[-largest, largest]),
            tooltip=["class:N", "predicted:N", "clean:Q", "attacked:Q", "shift:Q"],
        )
        .properties(width=WIDTH, height={"step": 20}),
    )


@cache
def _classes(series: tuple[str, ...]) -> Figure:
    base = rows_of("classes").encode(
        x=alt.X("class:N", title=None, axis=alt.Axis(labelAngle=-35)),
        xOffset=alt.XOffset("series:N", sort=list(series)),
        color=colour("series", series),
    )
    points = base.mark_point(filled=True, size=50).encode(
        y=alt.Y("value:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        tooltip=["class:N", "series:N", *percents("value", "low", "high"), "n:Q"],
    )
    intervals = base.mark_rule().encode(y="low:Q", y2="high:Q")
    return Figure(
        "Robust accuracy by class",
        "With 95 % Wilson intervals.",
        "classes",
        alt.layer(intervals, points).properties(width=WIDTH, height=HEIGHT),
    )


@cache
def _gains() -> Figure:
    base = rows_of("gains").encode(x=alt.X("channel:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)))
    bars = base.mark_bar(cursor="pointer").encode(
        y=alt.Y("gain:Q", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format=".2~f")),
        y2=alt.datum(1),
        color=alt.condition("datum.gain > 1", alt.value(ORANGE), alt.value(SKY)),
        opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.45)),
        tooltip=["neuron:N", "gain:Q", "shift:Q"],
    )
    return Figure(
        "The gains",
        "What each channel is multiplied by: upwards amplified, downwards compressed.",
        "gains",
        bars.properties(width=WIDTH, height=HEIGHT),
    )


@cache
def _strengths() -> Figure:
    base = rows_of("strengths").encode(
        x=alt.X("clean_change:Q", title="clean accuracy gained, val", axis=alt.Axis(format="+.1%")),
        y=alt.Y("robust_change:Q", title="PGD-10 accuracy gained, val", axis=alt.Axis(format="+.1%")),
        color=colour("network"),
    )
    tooltip = ["network:N", "strength:Q", *points("clean_change", "robust_change"), "taken:N"]
    marks = base.mark_point(filled=True).encode(
        shape="network:N",
        size=alt.condition("datum.taken", alt.value(200), alt.value(45)),
        tooltip=tooltip,
    )
    return Figure(
        "What each strength costs and brings",
        "Each fit at several strengths, on validation images; the large point was taken.",
        "strengths",
        alt.layer(base.mark_line(opacity=0.5).encode(order="strength:Q"), marks).properties(
            width=WIDTH, height=HEIGHT
        ),
    )


@cache
def _controls() -> Figure:
    base = rows_of("controls").encode(
        x=alt.X(
            "value:Q", title="PGD-10 accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])
        ),
        y=alt.Y("kind:N", title=None, sort=[ORIGINAL, HARDENED, SHUFFLED]),
        color=colour("kind", [SHUFFLED, HARDENED, ORIGINAL, "inverted", "uniform"]).legend(None),
        tooltip=["network:N", *percents("value", "low", "high"), "n:Q"],
    )
    intervals = (
        base.transform_filter(f"datum.kind !== '{SHUFFLED}'").mark_rule().encode(x="low:Q", x2="high:Q")
    )
    return Figure(
        "Is it these gains, or any gains?",
        "The same gains on other neurons (shuffled, a tick a draw), their inverse, and one gain for all.",
        "controls",
        alt.layer(intervals, base.mark_tick(thickness=3, size=16)).properties(
            width=WIDTH, height={"step": 24}
        ),
    )


Result = Dropout | Targeting | Patching | RobustAccuracy


def chart(result: Result, *, layer: str | None = None, epsilon: Epsilon | None = None) -> alt.TopLevelMixin:
    """The chart of a result, for a notebook or `.save("x.svg")`.

    layer, epsilon: of a result that has several; by default the first layer and the largest epsilon.
    Raises InputError for another result, and where it has no such layer or epsilon, or no number at all.
    """
    if not isinstance(result, Result):
        raise InputError(
            "there is no chart of this alone",
            given=type(result).__name__,
            allowed=", ".join(one.__name__ for one in get_args(Result)),
            fix="run fn.analyze or fn.harden: figures and report.html show the rest",
        )
    if isinstance(result, RobustAccuracy):
        made = {"accuracy": Dataset("Accuracy", _curve_rows(result))}
        name = "accuracy"
    else:
        grid = [format_epsilon(one) for one in result.epsilons]
        rows = neuron_rows(result.to_table().to_pylist(), grid)
        at = None if epsilon is None else format_epsilon(parse_epsilon(epsilon))
        chosen = {"layer": layer or rows[0]["layer"], "epsilon": at or (grid[-1] if grid else None)}
        made = {"neurons": Dataset("Neurons", rows, ("layer", "epsilon")).page(**chosen)}
        name = {Dropout: "dropout", Targeting: "targeting", Patching: "patching"}[type(result)]
        if not made["neurons"].rows:
            raise InputError(
                "the result has no such neurons",
                given=chosen,
                allowed=f"layers {', '.join({row['layer'] for row in rows})}; epsilons {', '.join(grid)}",
                fix="choose layer and epsilon of the result",
            )
    if isinstance(result, Dropout):
        found = figures(made, rule=result.rule, transfer=result.mode == "transfer")
    else:
        found = figures(made)
    if name not in found:
        raise InputError(
            "there is nothing to draw",
            given=f"{type(result).__name__} without a number",
            allowed="targeting at an epsilon above 0; patching where images are fooled",
            fix="choose larger epsilons, or look at the table: .to_table()",
        )
    figure = found[name]
    drawn: alt.TopLevelMixin = alt.Chart.from_dict(figure.drawn(made[figure.dataset].rows))
    return drawn


def _curve_rows(curve: RobustAccuracy) -> list[dict[str, Any]]:
    return [
        {
            "network": ORIGINAL,
            "attack": named(row["attack"]),
            "budget": row["epsilon"],
            "epsilon": row["epsilon"],
            **{name: row[name] for name in ("value", "low", "high", "n")},
        }
        for row in curve.to_table().to_pylist()
        if row["group"] == "all"
    ]
