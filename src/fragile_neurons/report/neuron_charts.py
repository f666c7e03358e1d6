"""The charts of neurons: dropout, targeting, patching, their relation, and neurons dropped in turn."""

from __future__ import annotations

from functools import cache

import altair as alt

from fragile_neurons.analysis.verdicts import VERDICTS, Rule
from fragile_neurons.report.datasets import Dataset
from fragile_neurons.report.drawing import (
    BLUE,
    CHOSEN,
    GREEN,
    GREY,
    HEIGHT,
    KEPT,
    SHAPES,
    SKY,
    STRIP,
    VERMILION,
    WIDTH,
    Figure,
    Panel,
    colour,
    diverging,
    percents,
    points,
    rows_of,
    verdict_colour,
)


def _along(rank: str) -> alt.X:
    """Neurons side by side in the order of a rank; under each its channel."""
    channel = "slice(datum.value, lastindexof(datum.value, ':') + 1)"
    axis = alt.Axis(labelExpr=channel, labelOverlap=True, labelAngle=0, ticks=False)
    return alt.X("neuron:N", sort=alt.EncodingSortField(rank), title=None, axis=axis)


def neuron_figures(made: Dataset, rule: Rule, *, transfer: bool) -> list[tuple[str, Figure]]:
    columns = set(made.columns)
    drawn = [("dropout", _dropout(rule, attacked="adv_drop" in columns, transfer=transfer))]
    if "share" in columns:
        drawn.append(("targeting", _targeting()))
        drawn.append(("relation", _relation(excess="excess" in columns)))
    if patched := tuple(name for name in PATCHED if name in columns):
        drawn.append(("patching", _patching(patched)))
    return drawn


def _bars(prefix: str, title: str, rule: Rule) -> Panel:
    """Drops in order of fragility, with intervals, and the band within which a neuron is robust, if any."""
    low, high, drop = (f"{prefix}_{name}" for name in ("low", "high", "drop"))
    base = rows_of("neurons").encode(x=_along("fragility_rank"))
    y = alt.Y(f"{drop}:Q", title="accuracy lost", axis=alt.Axis(format="+.1%"), stack=None)
    bars = base.mark_bar(cursor="pointer").encode(
        y=y,
        color=verdict_colour(f"{prefix}_verdict"),
        opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.45)),
        tooltip=["neuron:N", f"{prefix}_verdict:N", *points(drop, low, high), "margin_drop:Q"],
    )
    intervals = base.mark_rule(strokeWidth=1.2, color=GREY).encode(y=f"{low}:Q", y2=f"{high}:Q")
    layers = [bars, intervals]
    if rule.name == "tested":
        edges = alt.Chart(alt.InlineData(values=[{"low": -rule.tolerance, "high": rule.tolerance}]))
        layers.insert(0, edges.mark_rect(opacity=0.13, color=GREY).encode(y="low:Q", y2="high:Q"))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT - 40, title=title)


ROBUST = {
    "tested": "Robust: the whole interval lies inside the grey band.",
    "below-mean": "Robust: the accuracy without it is no lower than the mean of its layer.",
}


@cache
def _dropout(rule: Rule, *, attacked: bool, transfer: bool) -> Figure:
    panels = [_bars("clean", "clean", rule)]
    if attacked:
        title = "images attacked on the whole network: no verdicts" if transfer else "attacked anew"
        panels.append(_bars("adv", title, rule))
    return Figure(
        "Nodal dropout",
        "Accuracy lost when one neuron is dropped, in both panels in order of the clean margin drop, with "
        f"95 % intervals. Upwards: worse without it. {ROBUST[rule.name]}",
        "neurons",
        alt.vconcat(*panels),
    )


@cache
def _targeting() -> Figure:
    base = rows_of("neurons").encode(x=_along("share_rank"))
    bars = base.mark_bar(cursor="pointer", color=SKY).encode(
        y=alt.Y("share:Q", title="share of the layer's disturbance", axis=alt.Axis(format=".1%"), stack=None),
        opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.45)),
        tooltip=["neuron:N", *percents("share", "swap_share", "noise_share", "wins"), "excess:Q"],
    )
    swap = base.mark_tick(thickness=2.5, color=VERMILION).encode(y="swap_share:Q")
    noise = base.mark_tick(thickness=2.5, color=GREY).encode(y="noise_share:Q")
    return Figure(
        "Which neurons the attack strikes",
        "Bars: share of the layer's disturbance by FGSM. Orange ticks: by another image's FGSM; grey ticks: "
        "by random noise. A bar above its orange tick is struck more than by the attack on another image.",
        "neurons",
        alt.layer(bars, swap, noise).properties(width=WIDTH, height=HEIGHT),
    )


@cache
def groups_figure() -> Figure:
    chart = rows_of("targeting").mark_bar(cursor="pointer")
    return Figure(
        "Fooled against resisted",
        "Share over the images that the attack fooled minus share over those that resisted: upwards, the "
        "neuron is struck more where the attack works. In the order of the chart above, without intervals.",
        "targeting",
        chart.encode(
            x=_along("share_rank"),
            y=alt.Y("difference:Q", title="fooled minus resisted", axis=alt.Axis(format="+.2%"), stack=None),
            color=alt.condition("datum.difference > 0", alt.value(VERMILION), alt.value(BLUE)),
            opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.45)),
            tooltip=["neuron:N", *percents("fooled_share", "resisted_share"), *points("difference")],
        ).properties(width=WIDTH, height=HEIGHT),
    )


@cache
def by_class_figure() -> Figure:
    chart = rows_of("by class").mark_rect(cursor="pointer")
    return Figure(
        "Targeting by class",
        "Share on the images of a class over the share on all images: above 1 the attack on this class "
        "strikes the neuron more than it does elsewhere.",
        "by class",
        chart.encode(
            x=_along("share_rank"),
            y=alt.Y("class:N", title=None),
            color=diverging("relative_share", 1, "times"),
            stroke=alt.condition(CHOSEN, alt.value(GREEN), alt.value(None)),
            strokeWidth=alt.value(2),
            tooltip=["neuron:N", "class:N", *percents("share"), "relative_share:Q", "images:Q"],
        ).properties(width=WIDTH, height={"step": 16}),
    )


PATCHED = {"rescue": GREEN, "inject": VERMILION}


@cache
def _patching(names: tuple[str, ...]) -> Figure:
    def panel(name: str) -> Panel:
        base = rows_of("neurons").encode(x=_along("share_rank"))
        points = base.mark_point(filled=True, size=46, color=PATCHED[name], cursor="pointer").encode(
            y=alt.Y(f"{name}:Q", title=name, axis=alt.Axis(format=".1%")),
            opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.3)),
            tooltip=["neuron:N", *percents(name, f"{name}_low", f"{name}_high")],
        )
        intervals = base.mark_rule(color=GREY).encode(y=f"{name}_low:Q", y2=f"{name}_high:Q")
        return alt.layer(intervals, points).properties(width=WIDTH, height=HEIGHT - 60, title=name)

    return Figure(
        "Which neurons carry the attack",
        "Rescue: of the fooled images, those right again when this neuron alone gets its clean map. Inject: "
        "of those right, those broken when it alone gets its attacked map. 95 % intervals; neurons in "
        "order of share.",
        "neurons",
        alt.vconcat(*map(panel, names)),
    )


@cache
def _relation(*, excess: bool) -> Figure:
    def scatter(x: str, y: str, x_title: str, y_title: str, brush: alt.Parameter | None) -> alt.VConcatChart:
        base = rows_of("neurons").encode(
            color=verdict_colour("clean_verdict"),
            opacity=alt.condition(f"({KEPT}) && (chosen === '' || {CHOSEN})", alt.value(1), alt.value(0.3)),
        )
        percent = [
            alt.Axis(format=".2~%") if name in ("share", "clean_drop") else alt.Axis() for name in (x, y)
        ]
        across = alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(zero=False), axis=percent[0])
        up = alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(zero=False), axis=percent[1])
        shapes = alt.Scale(domain=list(VERDICTS), range=[SHAPES[name] for name in VERDICTS])
        points = base.mark_point(filled=True, cursor="pointer").encode(
            x=across,
            y=up,
            shape=alt.Shape("clean_verdict:N", scale=shapes),
            size=alt.condition(CHOSEN, alt.value(220), alt.value(60)),
            tooltip=["neuron:N", "clean_verdict:N", f"{x}:Q", f"{y}:Q", "weight_norm:Q"],
        )
        points = points.add_params(brush) if brush is not None else points
        bare_x, bare_y = across.axis(None), up.axis(None)
        above = (
            base.mark_tick(size=STRIP - 4, thickness=1.5)
            .encode(x=bare_x)
            .properties(width=WIDTH, height=STRIP)
        )
        beside = base.mark_tick(size=STRIP - 4, thickness=1.5).encode(y=bare_y)
        body = points.properties(width=WIDTH, height=HEIGHT + 50)
        return alt.vconcat(above, alt.hconcat(body, beside.properties(width=STRIP, height=HEIGHT + 50)))

    brush = alt.selection_interval(name="brush")
    panels = [scatter("share", "clean_drop", "share", "clean drop", brush if not excess else None)]
    if excess:
        panels.append(scatter("excess", "margin_drop", "excess", "clean margin drop", brush))
    return Figure(
        "Fragility against targeting",
        "A point is a neuron, on all images; the coefficients above come from halves of them. First the "
        "paper's question, then the controlled one: drag a rectangle in the lower chart to keep only these "
        "neurons in the others.",
        "neurons",
        alt.vconcat(*panels),
    )


@cache
def cumulative_figure(*, attacked: bool) -> Figure:
    def panel(test: str, title: str) -> Panel:
        base = (
            rows_of("cumulative")
            .transform_filter(test)
            .encode(
                x=alt.X(
                    "dropped:Q",
                    title="neurons dropped",
                    axis=alt.Axis(tickMinStep=1),
                    scale=alt.Scale(nice=False),
                ),
                color=colour("order"),
            )
        )
        band = base.mark_area(opacity=0.18).encode(
            y=alt.Y("low:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            y2="high:Q",
        )
        line = base.mark_line(point=True).encode(
            y="value:Q", tooltip=["order:N", "dropped:Q", *percents("value", "low", "high"), "n:Q"]
        )
        return alt.layer(band, line).properties(width=WIDTH, height=HEIGHT, title=title)

    panels = [panel("!isValid(datum.epsilon)", "clean")]
    if attacked:
        panels.append(panel("isValid(datum.epsilon)", "attacked"))
    return Figure(
        "Neurons dropped one after another",
        "In order of fragility, of targeting, and at random. The order comes from one half of the images, "
        "the curve from the other, both ways. Bands: 95 % Wilson intervals; of random orders, the lowest and "
        "the highest.",
        "cumulative",
        alt.vconcat(*panels),
    )
