"""How large is a report, and how long does a browser take until every chart is drawn?

    python benchmarks/report.py [--output FILE]

Networks of random weights on random images, 32 x 32: what counts here is how much there is to show. Needs
chromium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from bench import machine, table
from playwright.sync_api import Browser, sync_playwright
from torch import nn

import fragile_neurons as fn
from fragile_neurons.cli.console import progress

IMAGES, OPENED = 64, 5


def classifier_of(widths: tuple[int, ...]) -> fn.Classifier:
    """Convolutions of these widths, halving the map after each."""
    torch.manual_seed(0)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, (before, width) in enumerate(zip((3, *widths), widths, strict=False)):
        layers[f"conv{place + 1}"] = nn.Conv2d(before, width, 3, stride=1 + (place > 0), padding=1)
        layers[f"relu{place + 1}"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(widths[-1], 10)
    return fn.Classifier(nn.Sequential(layers), name="x".join(map(str, widths))).eval()


SUBJECTS = {
    "one layer, 64 neurons, 3 epsilons": ((64,), ["1/255", "2/255", "8/255"]),
    "one layer, 512 neurons, 1 epsilon": ((512,), ["2/255"]),
    "eleven layers, 688 neurons, 1 epsilon": ((32, *[64] * 9, 80), ["2/255"]),
}


def measure(browser: Browser, folder: Path) -> dict[str, object]:
    """Size, and the medians of seconds until cards can be clicked and until all charts are drawn."""
    page_file, cards, charts = folder / "report.html", [], []
    for _ in range(OPENED):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(page_file.as_uri(), wait_until="commit")
        page.wait_for_selector(".card")
        cards.append(time.perf_counter() - start)
        page.wait_for_selector("body[data-ready]")
        charts.append(time.perf_counter() - start)
        page.close()
    return {
        "MB": f"{page_file.stat().st_size / 1e6:.1f}",
        "examples.npz, MB": f"{(folder / 'examples.npz').stat().st_size / 1e6:.1f}",
        "s until neurons can be chosen": f"{statistics.median(cards):.1f}",
        "s until all charts are drawn": f"{statistics.median(charts):.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    data = fn.ImageData(
        generator.integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8),
        np.arange(IMAGES) % 10,
        tuple(f"class {place}" for place in range(10)),
        name="noise",
    )
    rows = []
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (widths, epsilons) in SUBJECTS.items():
            run = fn.analyze(
                classifier_of(widths),
                data,
                layer="all",
                epsilons=epsilons,
                mode="transfer",
                output=Path(scratch) / name,
                progress=progress,
            )
            pairs, mapped = (len(run.examples.get(part, ())) for part in ("images", "maps/conv1"))
            shown = {"images, of them with maps": f"{pairs}, {mapped}"}
            rows.append({"run": name, **shown, **measure(browser, run.folder)})
        version = browser.version
        browser.close()
    said = f"Made by `python benchmarks/report.py`. {machine(('altair', 'vl-convert-python'))}"
    how = f"Chromium {version}, headless; medians of {OPENED} openings from disk, 1280 x 900."
    text = f"# Reports, measured\n\n{said} {how}\n\n{table(rows)}\n"
    given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
