"""The picture of the report in the README, from a run folder: make screenshot."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT, COLOURS = 1160, 2380, 96
NEURON = "conv1:9"


def main(run: Path, picture: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto((run / "report.html").resolve().as_uri() + f"#neuron={NEURON}")
        page.wait_for_selector("body[data-ready]")
        page.evaluate("scrollTo(0, 0)")
        shown = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shown.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
