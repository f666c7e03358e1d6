"""Writes docs/study.md: the text of page.md with its tables, and the figures beside it.

python docs/study/page.py
"""

from __future__ import annotations

import relations
import tables
import vl_convert
from figures import drawn
from jinja2 import Environment, StrictUndefined
from kept import HERE

TABLES = (
    *(tables.networks, tables.robustness, tables.checks, tables.verdicts),
    *(relations.correlations, relations.means_over_networks, relations.explored),
    *(relations.precisions, relations.controls, tables.carriers, tables.cumulative),
    *(tables.seeds, tables.layers, tables.hardened, tables.hardening_controls),
)


def page() -> str:
    """The whole page."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = environment.from_string((HERE / "page.md").read_text(encoding="utf-8"))
    return text.render({one.__name__: one() for one in TABLES})


def figures() -> dict[str, str]:
    """SVG of each figure, by name."""
    return {name: vl_convert.vegalite_to_svg(chart) for name, chart in drawn().items()}


def main() -> None:
    """Rebuild everything from the committed files."""
    (HERE.parent / "study.md").write_text(page(), encoding="utf-8")
    (HERE / "figures").mkdir(exist_ok=True)
    for name, svg in figures().items():
        (HERE / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
