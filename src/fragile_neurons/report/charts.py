"""The charts of a run, by Altair: each says which dataset it draws, and leaves the rows to whoever shows it.

Every chart of neurons hears two parameters: `chosen`, a neuron's name, and `kept`, the names that a brush
left, or null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import altair as alt

from fragile_neurons.analysis.dropout import Dropout
from fragile_neurons.analysis.patching import Patching
from fragile_neurons.analysis.robustness import RobustAccuracy
from fragile_neurons.analysis.targeting import Targeting
from fragile_neurons.analysis.verdicts import VERDICTS
from fragile_neurons.errors import InputError
from fragile_neurons.norms import format_epsilon
from fragile_neurons.report.datasets import HARDENED, ORIGINAL, Dataset, named, neuron_rows
from fragile_neurons.report.hardening import SHUFFLED

# Okabe and Ito's colours, which colour-blind eyes tell apart
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A8A8A",
)  # fmt: skip
SERIES = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY]
VERDICT_COLOURS = {
    "fragile": VERMILION,
    "robust": BLUE,
    "antifragile": PURPLE,
    "null": "#444444",
    "undecided": GREY,
}
SHAPES = {
    "fragile": "triangle-down",
    "robust": "circle",
    "antifragile": "triangle-up",
    "null": "cross",
    "undecided": "square",
}
WIDTH, HEIGHT, STRIP = 640, 190, 18
PARAMS: list[dict[str, Any]] = [{"name": "chosen", "value": ""}, {"name": "kept", "value": None}]
KEPT = "kept === null || indexof(kept, datum.neuron) >= 0"
CHOSEN = "datum.neuron === chosen"
CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#88888833", "labelLimit": 120, "titleFontWeight": "normal"},
    "title": {"fontSize": 12, "anchor": "start", "fontWeight": "normal"},
    "legend": {"orient": "top", "title": None, "labelLimit": 260, "symbolOpacity": 1},
}


Panel = alt.LayerChart | alt.FacetChart


@dataclass(frozen=True)
class Figure:
    """A chart of datasets by name, with what it shows and how to read it."""

    title: str
    explained: str
    dataset: str
    chart: alt.TopLevelMixin

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Vega-Lite without rows: their place is named after the dataset."""
        spec: dict[str, Any] = self.chart.to_dict()
        own = [one for one in spec.get("params", ()) if one["name"] not in ("chosen", "kept")]
        return {**spec, "params": [*own, *PARAMS], "config": CONFIG}

    def drawn(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Vega-Lite with these rows."""
        spec = self.spec
        return {**spec, "datasets": {**spec.get("datasets", {}), self.dataset: list(rows)}}


def figures(
    made: dict[str, Dataset], *, tolerance: float = 0.01, chance: float | None = None
) -> dict[str, Figure]:
    """Every chart that there are rows for, by name. tolerance: of verdicts. chance: an accuracy."""
    drawn: dict[str, Callable[[], list[tuple[str, Figure]]]] = {
        "accuracy": lambda: [("accuracy", _accuracy(*_series(made["accuracy"]), chance))],
        "neurons": lambda: _neurons(made["neurons"], tolerance),
        "targeting": lambda: [("fooled-and-resisted", _groups())],
        "by class": lambda: [("targeting-by-class", _by_class())],
        "cumulative": lambda: [("cumulative", _cumulative())],
        "confusion": lambda: [("confusion", _confusion())],
        "classes": lambda: [("classes", _classes())],
        "gains": lambda: [("gains", _gains())],
        "strengths": lambda: [("strengths", _strengths())],
        "controls": lambda: [("controls", _controls())],
    }
    return dict(pair for name, make in drawn.items() if name in made for pair in make())


def _named(name: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name))


def _colour(field: str, domain: Iterable[str] | None = None) -> alt.Color:
    scale = alt.Scale(range=SERIES) if domain is None else alt.Scale(domain=list(domain), range=SERIES)
    return alt.Color(f"{field}:N", scale=scale)


def _verdict(field: str) -> alt.Color:
    scale = alt.Scale(domain=list(VERDICTS), range=[VERDICT_COLOURS[name] for name in VERDICTS])
    return alt.Color(f"{field}:N", scale=scale)


def _series(made: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The attacks and the networks, in the order in which they are named."""
    attacks, networks = (
        tuple(dict.fromkeys(row[name] for row in made.rows)) for name in ("attack", "network")
    )
    return attacks, networks


@cache
def _accuracy(attacks: tuple[str, ...], networks: tuple[str, ...], chance: float | None) -> Figure:
    base = _named("accuracy").encode(
        x=alt.X("budget:Q", title="epsilon, L-infinity"),
        color=_colour("attack", attacks),
    )
    dash = alt.StrokeDash(
        "network:N", sort=list(networks), legend=alt.Legend() if len(networks) > 1 else None
    )
    percent = alt.Axis(format="%")
    band = base.mark_area(opacity=0.18).encode(
        y=alt.Y("low:Q", title="accuracy", axis=percent, scale=alt.Scale(domain=[0, 1])),
        y2="high:Q",
        detail="network:N",
    )
    line = base.mark_line(point={"size": 45}).encode(
        y="value:Q",
        strokeDash=dash,
        tooltip=["network:N", "attack:N", "epsilon:N", *_percents("value", "low", "high"), "n:Q"],
    )
    layers = [band, line]
    if chance is not None:
        at = alt.Chart(alt.InlineData(values=[{"chance": chance}]))
        layers.append(
            at.mark_rule(strokeDash=[2, 3], color=GREY).encode(
                y="chance:Q", tooltip=[alt.Tooltip("chance:Q", format=".1%")]
            )
        )
    return Figure(
        "Accuracy against epsilon",
        "Bands are 95 % Wilson intervals; the dotted line is chance.",
        "accuracy",
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT + 40),
    )


def _percents(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=".1%") for name in names]


def _points(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format="+.2%") for name in names]


def _along(rank: str) -> alt.X:
    """Neurons side by side in the order of a rank; under each its channel."""
    axis = alt.Axis(labelExpr="split(datum.value, ':')[1]", labelOverlap=True, labelAngle=0, ticks=False)
    return alt.X("neuron:N", sort=alt.EncodingSortField(rank), title=None, axis=axis)


def _neurons(made: Dataset, tolerance: float) -> list[tuple[str, Figure]]:
    columns = set(made.columns)
    drawn = [("dropout", _dropout(tolerance, attacked="adv_drop" in columns))]
    if "share" in columns:
        drawn.append(("targeting", _targeting()))
        drawn.append(("relation", _relation(excess="excess" in columns)))
    if "rescue" in columns:
        drawn.append(("patching", _patching()))
    return drawn


def _bars(prefix: str, title: str, tolerance: float) -> Panel:
    """Drops in order of fragility, with intervals, and the band within which a neuron is robust."""
    low, high, drop = (f"{prefix}_{name}" for name in ("low", "high", "drop"))
    base = _named("neurons").transform_filter(KEPT).encode(x=_along("fragility_rank"))
    y = alt.Y(f"{drop}:Q", title="accuracy lost", axis=alt.Axis(format="+.1%"), stack=None)
    bars = base.mark_bar(cursor="pointer").encode(
        y=y,
        color=_verdict(f"{prefix}_verdict"),
        opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.45)),
        tooltip=["neuron:N", f"{prefix}_verdict:N", *_points(drop, low, high), "margin_drop:Q"],
    )
    intervals = base.mark_rule(strokeWidth=1.2, color=GREY).encode(y=f"{low}:Q", y2=f"{high}:Q")
    edges = alt.Chart(alt.InlineData(values=[{"low": -tolerance, "high": tolerance}]))
    band = edges.mark_rect(opacity=0.13, color=GREY).encode(y="low:Q", y2="high:Q")
    return alt.layer(band, bars, intervals).properties(width=WIDTH, height=HEIGHT - 40, title=title)


@cache
def _dropout(tolerance: float, *, attacked: bool) -> Figure:
    panels = [_bars("clean", "clean", tolerance)]
    if attacked:
        panels.append(_bars("adv", "attacked anew", tolerance))
    return Figure(
        "Nodal dropout",
        "Accuracy lost when one neuron is dropped, the most fragile first, in the same order in both panels, "
        "with 95 % Tango intervals. Upwards: worse without it. Inside the grey band the neuron is robust.",
        "neurons",
        alt.vconcat(*panels),
    )


@cache
def _targeting() -> Figure:
    base = _named("neurons").transform_filter(KEPT).encode(x=_along("share_rank"))
    bars = base.mark_bar(cursor="pointer", color=SKY).encode(
        y=alt.Y("share:Q", title="share of the layer's disturbance", axis=alt.Axis(format=".1%"), stack=None),
        opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.45)),
        tooltip=["neuron:N", *_percents("share", "swap_share", "noise_share", "wins"), "excess:Q"],
    )
    swap = base.mark_tick(thickness=2.5, color=VERMILION).encode(y="swap_share:Q")
    noise = base.mark_tick(thickness=2.5, color="#444444", opacity=0.75).encode(y="noise_share:Q")
    return Figure(
        "Which neurons the attack strikes",
        "Bars: share of the layer's disturbance by FGSM. Orange ticks: by another image's FGSM; dark ticks: "
        "by random noise. A bar above its orange tick is aimed at.",
        "neurons",
        alt.layer(bars, swap, noise).properties(width=WIDTH, height=HEIGHT),
    )


@cache
def _groups() -> Figure:
    chart = _named("targeting").transform_filter(KEPT).mark_point(filled=True, size=46, cursor="pointer")
    return Figure(
        "Fooled against resisted",
        "The same share over the images that the attack fooled, and over those that resisted.",
        "targeting",
        chart.encode(
            x=_along("share_rank"),
            y=alt.Y("share:Q", axis=alt.Axis(format=".1%"), scale=alt.Scale(zero=False)),
            color=_colour("group", ["resisted", "fooled"]),
            shape=alt.Shape("group:N", scale=alt.Scale(domain=["resisted", "fooled"])),
            opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.3)),
            tooltip=["neuron:N", "group:N", *_percents("share", "wins"), "images:Q"],
        ).properties(width=WIDTH, height=HEIGHT),
    )


def _diverging(field: str, middle: float, title: str, **scale: Any) -> alt.Color:
    return alt.Color(
        f"{field}:Q",
        scale=alt.Scale(scheme="blueorange", domainMid=middle, **scale),
        legend=alt.Legend(title=title, orient="right", gradientLength=120),
    )


@cache
def _by_class() -> Figure:
    chart = _named("by class").transform_filter(KEPT).mark_rect(cursor="pointer")
    return Figure(
        "Targeting by class",
        "Share on the images of a class over the share on all images: above 1 the attack on this class "
        "strikes the neuron more than it does elsewhere.",
        "by class",
        chart.encode(
            x=_along("share_rank"),
            y=alt.Y("class:N", title=None),
            color=_diverging("relative_share", 1, "times"),
            stroke=alt.condition(CHOSEN, alt.value("#000000"), alt.value(None)),
            tooltip=["neuron:N", "class:N", *_percents("share"), "relative_share:Q", "images:Q"],
        ).properties(width=WIDTH, height={"step": 16}),
    )


@cache
def _patching() -> Figure:
    def panel(name: str, colour: str, title: str) -> Panel:
        base = _named("neurons").transform_filter(KEPT).encode(x=_along("share_rank"))
        points = base.mark_point(filled=True, size=46, color=colour, cursor="pointer").encode(
            y=alt.Y(f"{name}:Q", title=title, axis=alt.Axis(format=".0%")),
            opacity=alt.condition(f"chosen === '' || {CHOSEN}", alt.value(1), alt.value(0.3)),
            tooltip=["neuron:N", *_percents(name, f"{name}_low", f"{name}_high")],
        )
        intervals = base.mark_rule(color=GREY).encode(y=f"{name}_low:Q", y2=f"{name}_high:Q")
        return alt.layer(intervals, points).properties(width=WIDTH, height=HEIGHT - 60, title=title)

    return Figure(
        "Which neurons carry the attack",
        "Rescue: of the fooled images, those right again when this neuron alone gets its clean map. Inject: "
        "of those right, those broken when it alone gets its attacked map. 95 % Wilson intervals; neurons in "
        "order of share.",
        "neurons",
        alt.vconcat(panel("rescue", GREEN, "rescue"), panel("inject", VERMILION, "inject")),
    )


@cache
def _relation(*, excess: bool) -> Figure:
    def scatter(x: str, y: str, x_title: str, y_title: str, brush: alt.Parameter | None) -> alt.VConcatChart:
        base = _named("neurons").encode(
            color=_verdict("clean_verdict"),
            opacity=alt.condition(f"({KEPT}) && (chosen === '' || {CHOSEN})", alt.value(1), alt.value(0.3)),
        )
        across = alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(zero=False))
        up = alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(zero=False))
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
        "A point is a neuron. First the paper's question, then the controlled one: drag a rectangle there to "
        "keep only these neurons in the other charts.",
        "neurons",
        alt.vconcat(*panels),
    )


@cache
def _cumulative() -> Figure:
    def panel(test: str, title: str) -> Panel:
        base = (
            _named("cumulative")
            .transform_filter(test)
            .encode(x=alt.X("dropped:Q", title="neurons dropped"), color=_colour("order"))
        )
        band = base.mark_area(opacity=0.18).encode(
            y=alt.Y("low:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            y2="high:Q",
        )
        line = base.mark_line(point=True).encode(
            y="value:Q", tooltip=["order:N", "dropped:Q", *_percents("value", "low", "high"), "n:Q"]
        )
        return alt.layer(band, line).properties(width=WIDTH, height=HEIGHT, title=title)

    return Figure(
        "Neurons dropped one after another",
        "In order of fragility, of targeting, and at random. The order comes from one half of the images, "
        "the curve from the other, both ways. Bands: 95 % Wilson intervals; of random orders, the lowest and "
        "the highest.",
        "cumulative",
        alt.vconcat(panel("datum.epsilon === null", "clean"), panel("datum.epsilon !== null", "attacked")),
    )


@cache
def _confusion() -> Figure:
    return Figure(
        "Where the attack moves the predictions",
        "Images attacked minus images clean, by true class and prediction: blue fewer, orange more.",
        "confusion",
        _named("confusion")
        .mark_rect()
        .encode(
            x=alt.X("predicted:N", title="predicted"),
            y=alt.Y("class:N", title="true class"),
            color=_diverging("shift", 0, "images"),
            tooltip=["class:N", "predicted:N", "clean:Q", "attacked:Q", "shift:Q"],
        )
        .properties(width=WIDTH, height={"step": 20}),
    )


@cache
def _classes() -> Figure:
    base = _named("classes").encode(
        x=alt.X("class:N", title=None, axis=alt.Axis(labelAngle=-35)),
        xOffset="series:N",
        color=_colour("series"),
    )
    points = base.mark_point(filled=True, size=50).encode(
        y=alt.Y("value:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        tooltip=["class:N", "series:N", *_percents("value", "low", "high"), "n:Q"],
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
    base = _named("gains").encode(x=alt.X("channel:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)))
    bars = base.mark_bar(cursor="pointer").encode(
        y=alt.Y("gain:Q", scale=alt.Scale(type="log")),
        y2=alt.datum(1),
        color=alt.condition("datum.gain > 1", alt.value(VERMILION), alt.value(BLUE)),
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
    base = _named("strengths").encode(
        x=alt.X("clean_change:Q", title="clean accuracy gained, val", axis=alt.Axis(format="+.1%")),
        y=alt.Y("robust_change:Q", title="PGD-10 accuracy gained, val", axis=alt.Axis(format="+.1%")),
        color=_colour("network"),
    )
    tooltip = ["network:N", "strength:Q", *_points("clean_change", "robust_change"), "taken:N"]
    points = base.mark_point(filled=True).encode(
        shape="network:N",
        size=alt.condition("datum.taken", alt.value(200), alt.value(45)),
        tooltip=tooltip,
    )
    return Figure(
        "What each strength costs and brings",
        "Each fit at several strengths, on validation images; the large point was taken.",
        "strengths",
        alt.layer(base.mark_line(opacity=0.5).encode(order="strength:Q"), points).properties(
            width=WIDTH, height=HEIGHT
        ),
    )


@cache
def _controls() -> Figure:
    base = _named("controls").encode(
        x=alt.X(
            "value:Q", title="PGD-10 accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])
        ),
        y=alt.Y("kind:N", title=None, sort=[ORIGINAL, HARDENED, SHUFFLED]),
        color=_colour("kind", [SHUFFLED, HARDENED, ORIGINAL, "inverted", "uniform"]).legend(None),
        tooltip=["network:N", *_percents("value", "low", "high"), "n:Q"],
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


def chart(result: Result, *, layer: str | None = None, epsilon: str | None = None) -> alt.TopLevelMixin:
    """The chart of a result, for a notebook or `.save("x.svg")`.

    layer, epsilon: of a result that has several; by default the first layer and the largest epsilon.
    """
    if isinstance(result, RobustAccuracy):
        made = {"accuracy": Dataset("Accuracy", _curve_rows(result))}
        name = "accuracy"
    else:
        grid = [format_epsilon(one) for one in result.epsilons]
        rows = neuron_rows(result.to_table().to_pylist(), grid)
        chosen = {"layer": layer or rows[0]["layer"], "epsilon": epsilon or (grid[-1] if grid else None)}
        made = {"neurons": Dataset("Neurons", rows, ("layer", "epsilon")).page(**chosen)}
        name = {Dropout: "dropout", Targeting: "targeting", Patching: "patching"}[type(result)]
        if not made["neurons"].rows:
            raise InputError(
                "the result has no such neurons",
                given=chosen,
                allowed=f"layers {', '.join({row['layer'] for row in rows})}; epsilons {', '.join(grid)}",
                fix="choose layer and epsilon of the result",
            )
    figure = figures(made)[name]
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
