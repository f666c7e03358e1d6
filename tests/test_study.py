"""docs/study.md says what the study's files say, and nothing that no table holds."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MACHINES = re.compile(r"/(home|root|work|tmp|Users)/")
NUMBER = re.compile(r"(?<![\w.])(?:\d[\d,]*\d|\d)(?:\.\d+)?")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_tables", DOCS / "study" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_one_that_its_files_make(tables: ModuleType) -> None:
    assert tables.page() == (DOCS / "study.md").read_text(encoding="utf-8")


def test_every_number_of_the_findings_stands_in_a_table(tables: ModuleType) -> None:
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
