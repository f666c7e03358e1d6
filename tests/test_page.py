"""The page and the figures as files: every number as in the run's own files, every text as a text."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import OrderedDict
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
import torch
from fitted import fitted
from hostile import PAYLOADS
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fragile_neurons as fn
from fragile_neurons import Classifier, ImageData, InputError, IntegrityError, Run
from fragile_neurons.cli import app
from fragile_neurons.report.cells import cell
from fragile_neurons.report.charts import figures
from fragile_neurons.report.datasets import Dataset, attack_names, datasets, neuron_rows
from fragile_neurons.report.figures import latex, write_figures
from fragile_neurons.report.page import compared, embedded, page
from fragile_neurons.report.pictures import PALETTE, pairs, png, sheets, signed


class Page(HTMLParser):
    """The texts of a page's tables, its scripts, and its elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._table: list[list[str]] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        self._inside = tag
        if tag == "table":
            self._table = self.tables.setdefault(given.get("data-dataset") or f"#{len(self.tables)}", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
            return
        self.texts.append(data)
        if self._inside in ("td", "th") and self._table:
            self._table[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


CHANNELS = (12, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two layers, two epsilons, 60 images of 20 classes; names that would break a page, wherever one goes."""
    torch.manual_seed(0)
    first, second = (PAYLOADS[place].replace(".", "") for place in (0, 4))
    layers = {
        first: nn.Conv2d(1, CHANNELS[0], 3),
        "relu": nn.ReLU(),
        second: nn.Conv2d(CHANNELS[0], CHANNELS[1], 3),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(CHANNELS[1] * 16, len(PAYLOADS)),
    }
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 20
    patterns = generator.integers(0, 256, (20, 1, 8, 8))
    images = (patterns[labels] + generator.integers(-40, 40, (60, 1, 8, 8))).clip(0, 255).astype(np.uint8)
    data = ImageData(images, labels, tuple(PAYLOADS), name=PAYLOADS[1])
    classifier = Classifier(nn.Sequential(OrderedDict(layers)), name=PAYLOADS[2])
    fitted(classifier, data, steps=20, rate=1e-2)
    folder = tmp_path_factory.mktemp("runs") / "a '<b>&\"#?%"
    return fn.analyze(classifier, data, layer="all", epsilons=["2/255", "0.2"], output=folder, batch_size=20)


def of(value: str, unit: str) -> float:
    """The number in a cell."""
    return float(value.removesuffix(unit).strip())


def test_every_cell_of_the_neurons_is_what_the_run_wrote(run: Run) -> None:
    table = Page(page(run)).tables["neurons"]
    header, rows = [name.replace(" ", "_") for name in table[0]], table[1:]
    with (run.folder / "neurons.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(rows) == len(written) == 2 * sum(CHANNELS)
    compared_columns = 0
    for row, truth in zip(rows, written, strict=True):
        shown = dict(zip(header, row, strict=True))
        assert shown["neuron"] == f"{truth['layer']}:{truth['channel']}"
        for column, text in shown.items():
            if column not in truth or column == "epsilon":
                continue
            value = truth[column]
            compared_columns += 1
            if value == "":
                assert text == "–"
            elif text.endswith(" pp"):
                assert of(text, " pp") == pytest.approx(100 * float(value), abs=0.00501)
            elif text.endswith(" %"):
                assert of(text, " %") == pytest.approx(100 * float(value), abs=0.00501)
            elif re.fullmatch(r"-?[\d.]+(e-?\d+)?", text):
                assert float(text) == pytest.approx(float(value), rel=6e-4)
            else:
                assert text == value
    assert compared_columns > 30 * len(rows)


def test_every_accuracy_and_count_is_that_of_the_summary(run: Run) -> None:
    found = json.loads((run.folder / "summary.json").read_text())
    shown = " ".join(" ".join(Page(page(run)).texts).split())
    for row in [found["clean_accuracy"], *found["robust_accuracy"]]:
        low, high = (round(100 * one, 1) for one in row["ci95"])
        assert f"{round(100 * row['value'], 1):.1f} % [{low:.1f}, {high:.1f}]" in shown
    table = Page(page(run)).tables
    verdicts = next(rows for rows in table.values() if rows[0] == ["layer", "condition", "verdicts"])
    assert len(verdicts) - 1 == len(found["dropout"]) == 6
    for (layer, _, text), row in zip(verdicts[1:], found["dropout"], strict=True):
        counted = {name: int(count) for count, name in re.findall(r"(\d+) ([a-z]+)(?:,|;|$)", text)}
        assert layer == row["layer"]
        assert {name: count for name, count in row["verdicts"].items() if count} == {
            name: count for name, count in counted.items() if name in row["verdicts"]
        }
    rhos = [row[table["correlation"][0].index("spearman")] for row in table["correlation"][1:]]
    for text, pair in zip(rhos, found["correlation"], strict=True):
        assert (text == "–") == (pair["spearman"] is None)
        assert text == "–" or float(text) == pytest.approx(pair["spearman"], rel=6e-4, abs=1e-9)


def test_no_text_is_anything_but_text(run: Run) -> None:
    read = Page(page(run))
    assert len(read.scripts) == 3  # the content, the library, ours
    content = json.loads(read.scripts[0])
    assert content["datasets"]["by class"]["columns"]["class"]["texts"] == PAYLOADS
    tags = {tag for tag, _ in read.elements}
    assert not tags & {"base", "svg", "iframe", "object", "embed", "b"}
    for tag, given in read.elements:
        assert not [name for name in given if name.startswith("on")]
        if tag == "img":
            assert str(given["src"]).startswith("data:image/png;base64,")
    shown = [row[read.tables["by class"][0].index("class")] for row in read.tables["by class"][1:]]
    assert set(shown) == set(PAYLOADS)
    assert run.summary["model"]["name"] == PAYLOADS[2]
    assert PAYLOADS[2] in "".join(read.texts)


def test_an_embedded_text_cannot_leave_its_script() -> None:
    text = str(embedded({"a": PAYLOADS, "b": "<!--", "c": "]]>"}))
    assert not set("<>&") & set(text)
    assert json.loads(text)["a"] == PAYLOADS


def test_a_page_needs_nothing_from_elsewhere(run: Run) -> None:
    read = Page(page(run))
    for tag, given in read.elements:
        for name in ("src", "href"):
            assert str(given.get(name, "data:")).startswith(("data:", "#")), (tag, given)
    (policy,) = [given["content"] for tag, given in read.elements if given.get("http-equiv")]
    assert str(policy).startswith("default-src 'none'")


def test_the_report_is_part_of_a_run_and_can_be_written_again(run: Run) -> None:
    report = run.folder / "report.html"
    assert report.is_file()
    before = report.read_text(encoding="utf-8")
    report.write_text("gone", encoding="utf-8")
    asked = CliRunner().invoke(app, ["verify", str(run.folder)])
    assert isinstance(asked.exception, IntegrityError)
    assert CliRunner().invoke(app, ["report", str(run.folder)]).exit_code == 0
    assert report.read_text(encoding="utf-8") == before
    assert CliRunner().invoke(app, ["verify", str(run.folder)]).exit_code == 0


@pytest.mark.parametrize("command", [["report"], ["figures"], ["compare", "OTHER"]])
def test_a_damaged_run_is_not_shown_nor_made_good(run: Run, tmp_path: Path, command: list[str]) -> None:
    for name in ("one", "two"):
        shutil.copytree(run.folder, tmp_path / name)
    summary = tmp_path / "one" / "summary.json"
    summary.write_text(summary.read_text().replace('"value": ', '"value": 0', 1))
    others = [str(tmp_path / "two") for _ in command[1:]]
    asked = CliRunner().invoke(app, [command[0], str(tmp_path / "one"), *others])
    assert isinstance(asked.exception, IntegrityError)
    assert "summary.json" in str(asked.exception)
    assert isinstance(CliRunner().invoke(app, ["verify", str(tmp_path / "one")]).exception, IntegrityError)


def test_a_page_says_what_its_run_did(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    asked = {"epsilons": ["0.1"], "mode": "transfer", "verdict_rule": "below-mean"}
    run = fn.analyze(small_classifier, small_data, output=tmp_path / "run", **asked)  # type: ignore[arg-type]
    shown = " ".join(Page(page(run)).texts)
    assert "below the mean over its layer" in shown
    assert "made on the whole network (transfer)" in shown
    assert "McNemar" not in shown
    assert "attacked anew" not in shown
    figures = json.loads(Page(page(run)).scripts[0])["figures"]
    assert "attacked anew" not in json.dumps(figures)


def test_pages_of_evaluation_and_hardening_have_the_numbers_of_their_summaries(
    small_data: ImageData, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    numbered = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    classifier = fitted(Classifier(numbered, name="numbered"), small_data, steps=20, rate=1e-2)
    halves = [small_data.take(np.arange(start, 40, 2)) for start in (0, 1)]
    runs = [
        fn.evaluate(classifier, small_data, attacks=["fgsm"], epsilons=["0.1"], output=tmp_path / "e"),
        fn.harden(
            classifier,
            val=halves[0],
            test=halves[1],
            epsilon="0.1",
            rule="proportional",
            alternatives=False,
            force=True,
            output=tmp_path / "h",
        ),
    ]
    for run in runs:
        found, read = run.summary, Page(page(run))
        shown = " ".join(" ".join(read.texts).split())
        rows = found["hardening"]["accuracies"] if found["hardening"] else found["robust_accuracy"]
        for row in rows:
            if row["attack"] != "pgd-10":
                low, high = (100 * one for one in row["ci95"])
                assert f"{100 * row['value']:.1f} % [{low:.1f}, {high:.1f}]" in shown
    gains = Page(page(runs[1])).tables["gains"]
    assert [row[:3] for row in gains[1:]] == [[f"0:{channel}", "0", str(channel)] for channel in range(4)]
    content = json.loads(Page(page(runs[1])).scripts[0])
    assert set(content["datasets"]["gains"]["columns"]["layer"]["texts"]) == {"0"}  # as the layers are named
    assert content["layers"] == ["0"]


def test_a_run_without_examples_has_a_page_without_pictures(run: Run, tmp_path: Path) -> None:
    for path in run.folder.iterdir():
        if path.name != "examples.npz":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text = page(Run(tmp_path))
    assert "What the network was shown" not in text
    assert "Which neurons are fragile?" in text


def test_damaged_examples_are_told(run: Run, tmp_path: Path) -> None:
    for path in run.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 300 if path.suffix == ".npz" else None])
    with pytest.raises(IntegrityError, match=r"examples\.npz cannot be read"):
        page(Run(tmp_path))


def test_figures_in_every_format_and_tables(run: Run, tmp_path: Path) -> None:
    written = write_figures(run, tmp_path, ["svg", "pdf", "png"], epsilon="2/255")
    names = {path.name for path in written}
    starts = {"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}
    for suffix, start in starts.items():
        for name in ("accuracy", "dropout", "targeting", "relation", "patching", "cumulative", "confusion"):
            assert f"{name}.{suffix}" in names
            assert (tmp_path / f"{name}.{suffix}").read_bytes().startswith(start)
    first = run.summary["layers"][0]["name"]
    with (tmp_path / "neurons.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["epsilon"]) for row in rows] == [(first, "2/255")] * CHANNELS[0]
    truth = {
        row["channel"]: row["share"]
        for row in run.neurons.to_pylist()
        if row["epsilon"] == 2 / 255 and row["layer"] == first
    }
    assert float(rows[2]["share"]) == pytest.approx(truth[2], rel=1e-5)
    assert len((tmp_path / "neurons.md").read_text().splitlines()) == 2 + CHANNELS[0]
    tex = (tmp_path / "by-class.tex").read_text()
    assert tex.count(r"\\") == 1 + CHANNELS[0] * 20
    assert not re.search(r"(?<!\\)[&%$#_]", re.sub(r" & ", " ", tex))


def test_a_page_that_a_run_does_not_have_is_an_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run has no such layer") as told:
        write_figures(run, tmp_path, layer="conv9")
    assert "conv9" in str(told.value)
    (epsilon,) = run.summary["spec"]["epsilons"][-1:]
    for same in (f"{epsilon}0", Fraction(epsilon)):
        assert write_figures(run, tmp_path, epsilon=str(same))
    with pytest.raises(InputError, match="the run has no such epsilon"):
        write_figures(run, tmp_path, epsilon="0.3")
    with pytest.raises(InputError, match="format"):
        write_figures(run, tmp_path, ["gif"])
    asked = CliRunner().invoke(app, ["figures", str(tmp_path)])
    assert isinstance(asked.exception, InputError)


def test_latex_shows_every_mark() -> None:
    text = latex(["a_b", "c"], [["50 % & $x$ #1 ~^", "\\{}|<>"], ["[1]", "*"]])
    assert text.splitlines()[1:4] == [
        r"{}a\_b & c \\",
        r"{}50 \% \& \$x\$ \#1 \textasciitilde{}\textasciicircum{} & "
        r"\textbackslash{}\{\}\textbar{}\textless{}\textgreater{} \\",
        r"{}[1] & * \\",
    ]


def test_runs_beside_each_other(
    run: Run, small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    other = fn.evaluate(
        small_classifier, small_data, attacks=["fgsm"], epsilons=["0.1"], output=tmp_path / "b"
    )
    read = Page(compared([run, other], tmp_path / "compare.html"))
    links = [given["href"] for tag, given in read.elements if tag == "a"]
    assert [":" in str(link) or "<" in str(link) for link in links] == [False, False]
    assert str(links[1]) == "b/report.html"
    assert {row[0] for row in read.tables["accuracy"][1:]} == {"original"}
    assert len(read.tables["accuracy"]) - 1 == 3 + 4  # clean as epsilon 0; FGSM, and the worst case, of one
    with pytest.raises(InputError, match="nothing to compare"):
        compared([run], tmp_path / "compare.html")
    with pytest.raises(InputError, match="named twice"):
        compared([run, run], tmp_path / "compare.html")


def test_signed_pictures_show_the_sign() -> None:
    picture = signed(np.array([[[-127, 0, 127]]], np.int8)).convert("RGB")
    below, zero, above = (picture.getpixel((place, 0)) for place in range(3))
    assert below[2] > below[0]  # type: ignore[index]
    assert above[0] > above[2]  # type: ignore[index]
    assert zero == (247, 247, 247)
    assert len(PALETTE) == 3 * 256
    coloured = signed(np.array([[[-127]], [[0]], [[127]]], np.int8))
    assert coloured.getpixel((0, 0)) == (1, 128, 255)
    assert png(picture).startswith("data:image/png;base64,")


def test_sheets_have_a_place_for_each_neuron(run: Run) -> None:
    first, second = (layer["name"] for layer in run.summary["layers"])
    made = sheets(run.examples)
    assert made[first]["channels"] == CHANNELS[0]
    assert set(made[first]["kernels"]) == {"own", "shared"}
    assert made[second]["patches"]["each"] == 4
    shown = pairs(run.examples, PAYLOADS, {})
    assert len(shown) == 60
    clean = Image.fromarray(run.examples["images"][0][0])
    assert shown[0]["clean"] == png(clean)


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (None, "share", "–"),
        (True, "taken", "yes"),
        (0.01234, "clean_drop", "+1.23 pp"),
        (-0.01, "adv_low", "-1.00 pp"),
        (0.5, "share", "50.00 %"),
        (0.5, "rho_low", "0.5"),
        (1.23456, "margin_drop", "1.235"),
        (7, "channel", "7"),
    ],
)
def test_a_cell_has_its_unit(value: Any, column: str, text: str) -> None:
    assert cell(value, column) == text


def test_two_attacks_of_one_name_stay_apart() -> None:
    paths = ["/one/my.py:f", "/two/my.py:f", "/two/my.py:g", "pgd"]
    found: dict[str, Any] = {"robust_accuracy": [{"attack": path} for path in paths], "hardening": None}
    assert list(attack_names(found).values()) == ["/one/my.py:f", "/two/my.py:f", "my.py:g", "PGD"]
    judged = attack_names({"robust_accuracy": [{"attack": "pgd"}], "hardening": {"rule": "learned"}})
    assert judged == {"pgd": "PGD on both losses"}  # another attack than PGD of `evaluate`


def test_a_dataset_shows_one_page(run: Run) -> None:
    made = datasets(run)
    first = run.summary["layers"][0]["name"]
    assert len(made["neurons"].page(layer=first, epsilon="0.2").rows) == CHANNELS[0]
    steps = made["cumulative"].page(layer=first, epsilon="0.2").rows
    assert {row["epsilon"] for row in steps} == {None, "0.2"}
    assert Dataset("none", []).columns == []


def test_a_chart_of_a_result(small_classifier: Classifier, small_data: ImageData, tmp_path: Path) -> None:
    drop = fn.dropout(small_classifier, small_data, layer="all", epsilons=["0.05", "0.1"])
    drawn = fn.chart(drop, layer="conv2", epsilon="0.05")
    assert isinstance(drawn, alt.TopLevelMixin)
    rows = drawn.to_dict()["datasets"]["neurons"]
    assert [row["neuron"] for row in rows] == [f"conv2:{channel}" for channel in range(6)]
    table = drop.to_table().to_pylist()
    truth = [row["adv_drop"] for row in table if row["layer"] == "conv2" and row["epsilon"] == 0.05]
    assert [row["adv_drop"] for row in rows] == pytest.approx(truth, rel=1e-5)
    for result in (
        fn.targeting(small_classifier, small_data, epsilons=["0.1"]),
        fn.patching(small_classifier, small_data, epsilons=["0.1"]),
        fn.robust_accuracy(small_classifier, small_data, epsilons=["0", "0.1"]),
    ):
        fn.chart(result).save(tmp_path / "chart.svg")
        assert (tmp_path / "chart.svg").read_text().startswith("<svg")
    with pytest.raises(InputError, match="no such neurons"):
        fn.chart(drop, layer="conv9")
    for epsilon in (0.05, "0.050", Fraction(1, 20)):
        assert fn.chart(drop, layer="conv2", epsilon=epsilon).to_dict() == drawn.to_dict()
    with pytest.raises(InputError, match="no chart of this alone"):
        fn.chart(fn.cumulative(small_classifier, small_data))  # type: ignore[arg-type]


def test_a_chart_without_a_number_is_refused_and_one_measure_of_two_is_drawn(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    for nothing in ([], ["0"]):
        with pytest.raises(InputError, match="there is nothing to draw"):
            fn.chart(fn.targeting(small_classifier, small_data, epsilons=nothing))
    patched = fn.patching(small_classifier, small_data, epsilons=["0.1"])
    table = patched.to_table().to_pylist()
    assert any(row["inject"] for row in table)
    rows = neuron_rows([{**row, "rescue": None} for row in table], ["0.1"])
    (drawn,) = [
        figure
        for name, figure in figures({"neurons": Dataset("Neurons", rows, ("layer", "epsilon"))}).items()
        if name == "patching"
    ]
    text = json.dumps(drawn.drawn(rows))
    assert "inject:Q" in text or '"inject"' in text
    assert '"title": "rescue"' not in text


def test_a_chart_says_what_its_verdicts_were_reached_by(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    options: dict[str, Any] = {"epsilons": ["0.1"], "mode": "transfer"}
    tested = fn.dropout(small_classifier, small_data, tolerance=0.05, **options)
    text = json.dumps(fn.chart(tested).to_dict())
    assert "no verdicts" in text
    assert '"high": 0.05' in text
    simple = fn.dropout(small_classifier, small_data, verdict_rule="below-mean", **options)
    assert '"high": 0.0' not in json.dumps(fn.chart(simple).to_dict())


def test_a_page_of_the_simpler_rule_has_its_own_caption(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epsilons": ["0.1"], "verdict_rule": "below-mean"}
    made = fn.analyze(small_classifier, small_data, output=tmp_path / "run", **options)
    text = (made.folder / "report.html").read_text(encoding="utf-8")
    assert "no lower than the mean of its layer" in text
    assert "grey band" not in text
