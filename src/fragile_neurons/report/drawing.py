"""What all charts have in common: colours, sizes, and what a chart is: Vega-Lite by Altair, without its rows.

Every chart hears two parameters: `chosen`, a neuron's name, and `kept`, the names of those that a brush left,
or null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import altair as alt

from fragile_neurons.analysis.verdicts import VERDICTS

# Okabe and Ito's colours, which colour-blind eyes tell apart
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A8A8A",
)  # fmt: skip
SERIES = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY]
VERDICT_COLOURS = {
    "fragile": VERMILION,
    "robust": BLUE,
    "antifragile": PURPLE,
    "null": "#7A6F4B",
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


def rows_of(name: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name))


def colour(field: str, domain: Iterable[str] | None = None) -> alt.Color:
    scale = alt.Scale(range=SERIES) if domain is None else alt.Scale(domain=list(domain), range=SERIES)
    return alt.Color(f"{field}:N", scale=scale)


def verdict_colour(field: str) -> alt.Color:
    scale = alt.Scale(domain=list(VERDICTS), range=[VERDICT_COLOURS[name] for name in VERDICTS])
    return alt.Color(f"{field}:N", scale=scale)


def percents(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=".1%") for name in names]


def points(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format="+.2%") for name in names]


def diverging(field: str, middle: float, title: str, **scale: Any) -> alt.Color:
    return alt.Color(
        f"{field}:Q",
        scale=alt.Scale(scheme="blueorange", domainMid=middle, **scale),
        legend=alt.Legend(title=title, orient="right", gradientLength=120),
    )
