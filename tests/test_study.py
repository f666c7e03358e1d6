"""docs/study.md says what the study's files say, and nothing that no table holds."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

DOCS = Path(__file__).parents[1] / "docs"
STUDY = DOCS / "study"
LABEL = re.compile(r'aria-label="([^"]+)"')
MACHINES = re.compile(r"/(home|root|work|tmp|Users)/")
NUMBER = re.compile(r"(?<![\w.,])[+-]?(?:\d[\d,]*\d|\d)(?:\.\d+)?(?:e-\d+)?(?![\w]|\.\d)(?: \[[^\]]+\])?")


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


def numbers(text: str) -> set[str]:
    """Whole numbers as they are written, with sign and the interval behind; units are left out."""
    plain = re.sub(r"\]\([^)]*\)|`[^`]*`", "", " ".join(text.split()))
    plain = plain.replace("95 % intervals", "").replace(" %", "").replace(" pp", "")
    return set(NUMBER.findall(plain))


def test_every_number_of_the_findings_stands_in_a_table() -> None:
    text = (DOCS / "study.md").read_text(encoding="utf-8")
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    findings, _, tables = text.partition("## Findings\n")[2].partition("\n## ")
    rows = numbers("\n".join(line for line in tables.splitlines() if line.startswith("|")))
    alone = {number.partition(" ")[0] for number in rows}
    found = readme.partition("## What it finds\n")[2].partition("\n## ")[0]
    for section, heading in ((findings, "docs/study.md"), (found, "README.md")):
        said = numbers(section)
        assert said
        assert not {number for number in said if "[" in number} - rows, heading
        assert not {number for number in said if "[" not in number} - alone, heading


def test_a_mean_over_networks_is_of_fishers_z_and_its_p_of_every_choice_of_signs(page: ModuleType) -> None:
    zs = np.array([0.3, 0.5, -0.1, 0.8, 0.2])
    mean = page.relations.Mean.of(zs)
    interval = ttest_1samp(zs, 0.0).confidence_interval()
    assert (mean.rho, mean.low, mean.high) == pytest.approx(np.tanh([zs.mean(), *interval]))
    reach = t.ppf(0.975, 4) * zs.std(ddof=1) * np.sqrt(1 + 1 / 5)
    assert mean.other == pytest.approx(np.tanh([zs.mean() - reach, zs.mean() + reach]))
    by_chance = [abs(np.mean(zs * signs)) for signs in product([-1, 1], repeat=5)]
    assert mean.p == pytest.approx(np.mean(np.array(by_chance) >= zs.mean() - 1e-12))


def test_trainings_of_one_network_count_as_one_in_the_mean(
    page: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rhos = {("one", "mnist"): [0.2, 0.6], ("one", "cifar10"): [0.1], ("two", "mnist"): [0.4]}
    asked = [
        (SimpleNamespace(network=network), {"spearman": rho, "partial_spearman": -rho})
        for network, trained in rhos.items()
        for rho in trained
    ]
    monkeypatch.setattr(page.relations, "asked", lambda x, y: iter(asked))
    found = page.relations.over_networks("clean_drop", "share")
    zs = np.array([np.mean(np.arctanh(trained)) for trained in rhos.values()])
    assert found.networks == 3
    assert (found.raw.rho, found.given.rho) == pytest.approx((np.tanh(zs.mean()), -np.tanh(zs.mean())))
    monkeypatch.setattr(page.relations, "asked", lambda x, y: iter(asked[:2]))
    assert page.relations.over_networks("clean_drop", "share") is None


def test_a_number_is_not_found_in_part_of_another() -> None:
    assert numbers("| -11.7 [-13.5, -10.1] | 2 of 16: 12.5 % [3.5, 36.0] | +0.58 (p 2.8e-08) |") == {
        *("-11.7 [-13.5, -10.1]", "2", "16", "12.5 [3.5, 36.0]", "+0.58", "2.8e-08"),
    }
    assert numbers("by 1.5 pp, resnet20") == {"1.5"}


def test_weights_that_are_not_kept_are_told_by_their_checksums() -> None:
    cards = {path.stem: json.loads(path.read_text()) for path in (STUDY / "cards").glob("*.json")}
    for path in (STUDY / "runs").glob("*/summary.json"):
        summary = json.loads(path.read_text())
        if weights := summary["spec"]["weights"]:
            card = cards[Path(weights).parent.name]
            assert card["weights_sha256"] == summary["model"]["weights_sha256"], path


def test_the_cards_are_of_the_trainings_that_are_listed() -> None:
    listed = [shlex.split(line) for line in (STUDY / "train.txt").read_text().splitlines()]
    for card in (STUDY / "cards").glob("*.json"):
        (options,) = [options for options in listed if Path(options[-1]).name == card.stem]
        asked = set(zip(options[:-2:2], options[1:-2:2], strict=True))
        words = shlex.split(json.loads(card.read_text())["command"])[2:]
        assert asked <= set(zip(words[::2], words[1::2], strict=True)), card


def test_every_run_has_a_name_of_its_own(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    study = importlib.import_module("study")
    monkeypatch.chdir(DOCS.parent)
    names = [study.run_name(spec) for specs in study.listed().values() for spec in specs]
    assert len(names) == len(set(names))
    assert {folder.name for folder in (STUDY / "runs").iterdir()} <= set(names)


def test_make_knows_the_study() -> None:
    recipes = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    for script in re.findall(r"docs/study/\w+\.py", recipes):
        assert (DOCS.parent / script).is_file()
    assert "docs/study/page.py" in recipes


def test_no_path_of_a_machine_is_kept() -> None:
    files = [path for path in (DOCS / "study").rglob("*") if path.suffix in (".json", ".toml", ".csv")]
    assert files
    for path in files:
        assert not MACHINES.search(path.read_text(encoding="utf-8")), path
    assert sum(path.stat().st_size for path in files) < 5_000_000
