"""Take the pictures of the documents in a headless Chromium.

    python docs/screenshots.py [RUN]

docs/report.png is the first screen of results/photos/report.html. With a RUN that was trained with
``data=photos``, as in the tutorial, docs/serve.png is its page for the photograph of a cat.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from alexnet2012.inference.trained_model import load_trained
from alexnet2012.inference.web.server import ModelSession, Server

DOCS = Path(__file__).parent
REPORT = DOCS.parent / "results" / "photos" / "report.html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def report(new_page: Callable[..., Any]) -> None:
    page = new_page(viewport={"width": 1100, "height": 780})
    page.goto(REPORT.as_uri())
    save(page.screenshot(), "report.png")


def serve(new_page: Callable[..., Any], run: Path) -> None:
    page = new_page(viewport={"width": 1100, "height": 800}, reduced_motion="reduce")
    with Server("127.0.0.1", 0) as server:
        server.session = ModelSession(load_trained(run, "cpu"), views=10)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.address)
        page.click("[data-photo=chelsea]")
        page.wait_for_selector("#predictions li")
        save(page.screenshot(full_page=True), "serve.png")
        server.shutdown()


def save(png: bytes, name: str) -> None:
    """With a palette of 256 colours, which takes a third of the bytes."""
    Image.open(BytesIO(png)).convert("RGB").quantize(256).save(DOCS / name, optimize=True)


def main() -> None:
    path = shutil.which("chromium")  # else Playwright's own
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        report(browser.new_page)
        for run in sys.argv[1:]:
            serve(browser.new_page, Path(run))


if __name__ == "__main__":
    main()
