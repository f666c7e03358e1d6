"""The report in a real browser: nothing breaks, nothing is asked for, and what is chosen is followed."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from fitted import fitted
from hostile import PAYLOADS
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from torch import nn

import fragile_neurons as fn
from fragile_neurons import Classifier, ImageData, Run

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parent.parent / "build/screenshots"
READY = "body[data-ready]"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """conv1 (8 neurons, kernels of colours) and conv2 (5) on 48 images of 20 hostile classes."""
    torch.manual_seed(0)
    names = ("conv1", PAYLOADS[0].replace(".", ""))
    module = nn.Sequential()
    for name, layer in (
        (names[0], nn.Conv2d(3, 8, 3, padding=1)),
        ("relu", nn.ReLU()),
        (names[1], nn.Conv2d(8, 5, 3, padding=1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(5 * 64, 20)),
    ):
        module.add_module(name, layer)
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 20
    patterns = generator.integers(0, 256, (20, 3, 8, 8))
    images = (patterns[labels] + generator.integers(-60, 60, (60, 3, 8, 8))).clip(0, 255).astype(np.uint8)
    data = ImageData(images, labels, tuple(PAYLOADS), name=PAYLOADS[5])
    classifier = Classifier(module, name=PAYLOADS[3])
    fitted(classifier, data, steps=15, rate=1e-2)
    folder = tmp_path_factory.mktemp("runs") / "run"
    return fn.analyze(classifier, data, layer="all", epsilons=["2/255", "0.1"], output=folder, batch_size=20)


@dataclass
class Seen:
    """What a page did that a reader would not want."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Browser, run: Run) -> Iterator[Seen]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    seen = watch(page)
    page.goto((run.folder / "report.html").as_uri())
    page.wait_for_selector(READY)
    yield seen
    page.close()
    assert seen.complaints == []
    assert [one for one in seen.requests if not one.startswith(("file://", "data:", "blob:"))] == []
    assert len([one for one in seen.requests if one.startswith("file://")]) == 1


def watch(page: Page) -> Seen:
    seen = Seen(page)
    page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("dialog", lambda dialog: seen.complaints.append(f"a dialog: {dialog.message}"))
    return seen


def marks(page: Page, figure: str, kind: str) -> Locator:
    return page.locator(f"[data-figure='{figure}'] .{kind} path")


def chosen(page: Page) -> str:
    return str(page.evaluate("state.neuron"))


def test_a_click_on_a_kernel_is_seen_in_every_chart(opened: Seen, run: Run) -> None:
    page = opened.page
    page.locator(".card[data-neuron='conv1:5']").click()
    page.wait_for_function("views.get('relation').signal('chosen') === 'conv1:5'")
    page.wait_for_timeout(200)
    shapes = page.evaluate(
        "[...document.querySelectorAll(\"[data-figure='relation'] .mark-symbol path\")]"
        ".map((one) => one.getBBox().width)"
    )
    large = [width for width in shapes if width > 1.5 * np.median(shapes)]
    assert len(large) == 2  # the neuron in both scatters
    assert page.locator(".card[aria-pressed='true']").count() == 1
    assert page.evaluate("location.hash") == "#neuron=conv1%3A5"
    numbers = page.locator("#neuron").inner_text()
    truth = [row for row in run.neurons.to_pylist() if (row["channel"], row["epsilon"]) == (5, 0.1)]
    assert f"{100 * truth[0]['share']:.2f} %" in numbers
    assert page.locator(".maps").first.is_visible()
    page.keyboard.press("Escape")
    assert chosen(page) == ""
    assert page.evaluate("location.hash") == ""


def test_a_click_in_a_chart_chooses_the_neuron(opened: Seen) -> None:
    page = opened.page
    page.locator("[data-figure='targeting'] .mark-rect path").first.click(force=True)
    page.wait_for_function("state.neuron !== ''")
    assert page.locator(f".card[data-neuron='{chosen(page)}']").get_attribute("aria-pressed") == "true"


def test_an_address_points_at_a_neuron_of_any_layer(browser: Browser, run: Run) -> None:
    page = browser.new_page()
    seen = watch(page)
    name = f"{run.summary['layers'][1]['name']}:3"
    page.goto((run.folder / "report.html").as_uri())
    page.wait_for_selector(READY)
    page.evaluate("(name) => { location.hash = new URLSearchParams({ neuron: name }); }", name)
    page.wait_for_function("(name) => state.neuron === name", arg=name)
    address = page.url
    page.close()
    fresh = browser.new_page()
    fresh.goto(address)
    fresh.wait_for_selector(READY)
    assert chosen(fresh) == name
    assert fresh.evaluate("state.layer") == run.summary["layers"][1]["name"]
    assert fresh.locator(".card").count() == 5
    assert fresh.locator(".card .cuts").count() == 5  # patches: its kernels are no pictures
    fresh.close()
    assert seen.complaints == []


@pytest.mark.parametrize("by", ["fragility", "targeting", "excess", "index"])
def test_neurons_can_be_sorted(opened: Seen, run: Run, by: str) -> None:
    opened.page.locator("#sort").select_option(by)
    shown = [card.get_attribute("data-neuron") for card in opened.page.locator(".card").all()]
    rows = [row for row in run.neurons.to_pylist() if row["epsilon"] == 0.1 and row["layer"] == "conv1"]
    keys = {
        "fragility": lambda row: (-row["clean_drop"], -row["margin_drop"]),
        "targeting": lambda row: -row["share"],
        "excess": lambda row: -row["excess"],
        "index": lambda row: row["channel"],
    }
    assert shown == [f"conv1:{row['channel']}" for row in sorted(rows, key=keys[by])]


def test_a_brush_keeps_neurons_in_the_other_charts(opened: Seen) -> None:
    page = opened.page
    bars = marks(page, "targeting", "mark-rect")  # a bar and two ticks for each neuron
    assert bars.count() == 3 * 8
    page.locator("[data-figure='relation'] svg").scroll_into_view_if_needed()
    box = page.evaluate(
        """() => {
            const points = document.querySelectorAll("[data-figure='relation'] .mark-symbol.role-mark");
            const { x, y, width, height } = [...points].at(-1).getBoundingClientRect();
            return { x, y, width, height };
        }"""
    )
    page.mouse.move(box["x"] - 3, box["y"] - 3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] + 3, steps=5)
    page.mouse.up()
    page.wait_for_function("state.kept !== null && !document.body.dataset.ready")
    page.wait_for_selector(READY)
    kept = page.evaluate("state.kept")
    assert 0 < len(kept) < 8
    assert bars.count() == 3 * len(kept)
    assert page.locator(".card.left-out").count() == 8 - len(kept)
    rows = page.locator("table[data-dataset='neurons'] tbody tr:not([hidden])")
    assert [row.get_attribute("data-neuron") for row in rows.all()] == sorted(kept)
    page.keyboard.press("Escape")
    page.wait_for_selector(READY)
    assert page.evaluate("state.kept") is None
    assert bars.count() == 3 * 8


def test_pages_by_layer_and_epsilon(opened: Seen, run: Run) -> None:
    page = opened.page
    second = run.summary["layers"][1]["name"]
    page.locator("#layer").select_option(second)
    page.wait_for_selector(READY)
    assert page.locator(".card").count() == 5
    page.locator("#epsilon").select_option("2/255")
    page.wait_for_selector(READY)
    rows = page.locator("table[data-dataset='neurons'] tbody tr:not([hidden])")
    assert rows.count() == 5
    shown = {(row.get_attribute("data-layer"), row.get_attribute("data-epsilon")) for row in rows.all()}
    assert shown == {(second, "2/255")}
    for one in page.locator("#relation li:not([hidden])").all():
        assert second in (one.get_attribute("data-layer") or "")


def test_keys_are_enough(opened: Seen) -> None:
    page = opened.page
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert chosen(page) == "conv1:2"


def test_a_table_can_be_downloaded(opened: Seen, run: Run) -> None:
    page = opened.page
    page.locator("summary", has_text="Table: Neurons").first.click()
    with page.expect_download() as waiting:
        page.locator(".download[data-dataset='neurons']").click()
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    truth = run.neurons.to_pylist()
    assert len(rows) == len(truth) == 2 * 13
    for row, one in zip(rows, truth, strict=True):
        assert row["neuron"] == f"{one['layer']}:{one['channel']}"
        assert float(row["margin_drop"]) == pytest.approx(one["margin_drop"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "scheme", "media"),
    [("light", 1280, "light", "screen"), ("dark", 1280, "dark", "screen"), ("narrow", 320, "light", "screen"),
     ("print", 800, "light", "print")],
)  # fmt: skip
def test_it_fits_and_can_be_read(
    browser: Browser, run: Run, name: str, width: int, scheme: str, media: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    seen = watch(page)
    page.emulate_media(media=media)  # type: ignore[arg-type]
    page.goto((run.folder / "report.html").as_uri())
    page.wait_for_selector(READY)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inks = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.plot text')).fill]"
    )
    assert contrast(inks[0], inks[1]) > 7
    assert contrast(inks[2], inks[1]) > 7
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    page.close()
    assert seen.complaints == []


def contrast(one: str, other: str) -> float:
    """Of two css colours, as the WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.strip("rgba() ").split(",")[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_without_scripts_the_tables_are_there(browser: Browser, run: Run) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((run.folder / "report.html").as_uri())
    page.locator("summary", has_text="Table: Neurons").first.click()
    assert page.locator("table[data-dataset='neurons'] tbody tr").first.is_visible()
    assert page.locator("table[data-dataset='neurons'] tbody tr").count() == 2 * 13
    assert page.locator("h1").inner_text().startswith(PAYLOADS[3][:10])
    context.close()


def test_a_page_of_hardening_and_of_evaluation(
    browser: Browser, small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    half = [small_data.take(np.arange(start, 40, 2)) for start in (0, 1)]
    runs = [
        fn.evaluate(small_classifier, small_data, attacks=["fgsm"], epsilons=["0.1"], output=tmp_path / "e"),
        fn.harden(
            small_classifier, val=half[0], test=half[1], epsilon="0.1", rule="proportional",
            alternatives=False, output=tmp_path / "h",
        ),
    ]  # fmt: skip
    for run in runs:
        page = browser.new_page()
        seen = watch(page)
        page.goto((run.folder / "report.html").as_uri())
        page.wait_for_selector(READY)
        assert page.locator(".plot svg").count() == page.locator(".plot").count() > 1
        if run.command == "harden":
            assert page.locator(".card").count() == 4  # conv1's; conv2 is another page
            assert "compressed" in page.locator(".frames").inner_text()
        page.close()
        assert seen.complaints == []


def test_an_empty_grid_has_a_page(
    browser: Browser, small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    run = fn.analyze(small_classifier, small_data, epsilons=[], output=tmp_path / "clean")
    page = browser.new_page()
    seen = watch(page)
    page.goto((run.folder / "report.html").as_uri())
    page.wait_for_selector(READY)
    assert page.locator("[data-figure='dropout'] svg").count() == 1
    assert page.locator(".card").count() == 4
    page.close()
    assert seen.complaints == []
