"""docs/study.md says what the study's files say, and nothing that no table holds."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
STUDY = DOCS / "study"
LABEL = re.compile(r'aria-label="([^"]+)"')
MACHINES = re.compile(r"/(home|root|work|tmp|Users)/")
NUMBER = re.compile(r"(?<![\w.])(?:\d[\d,]*\d|\d)(?:\.\d+)?")


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY))
        yield importlib.import_module("page")


def test_the_page_is_the_one_that_its_files_make(page: ModuleType) -> None:
    assert page.page() == (DOCS / "study.md").read_text(encoding="utf-8")


def test_the_figures_show_what_the_files_hold(page: ModuleType) -> None:
    drawn = page.figures()
    kept = {path.stem: path.read_text(encoding="utf-8") for path in (STUDY / "figures").glob("*.svg")}
    assert kept.keys() == drawn.keys()
    for name, svg in drawn.items():
        said, held = (sorted(LABEL.findall(text)) for text in (svg, kept[name]))
        assert len(said) > 20
        assert said == held, name
    shown = re.findall(r"\(study/figures/(\w+)\.svg\)", page.page())
    assert sorted(shown) == sorted(drawn)


def test_every_number_of_the_findings_stands_in_a_table() -> None:
    text = (DOCS / "study.md").read_text(encoding="utf-8")
    findings = text.partition("## Findings\n")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    said, held = set(NUMBER.findall(findings)), set(NUMBER.findall(rows))
    assert len(said) > 20
    assert said <= held, said - held


def test_no_path_of_a_machine_is_kept() -> None:
    files = [path for path in (DOCS / "study").rglob("*") if path.suffix in (".json", ".toml", ".csv")]
    assert files
    for path in files:
        assert not MACHINES.search(path.read_text(encoding="utf-8")), path
    assert sum(path.stat().st_size for path in files) < 5_000_000
