"""Makes docs/images anew: the page, the report and the pictures, as a desktop and a phone show them.

Run it in a checkout with the extra `browser` and chromium: python docs/screenshots.py [WORD OF A NAME]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from planner import auto, card, report
from planner.web import form as forms
from planner.web import page
from planner.web.desk import Desk
from planner.web.form import Form

IMAGES = Path(__file__).parent / "images"
DESKTOP, PHONE = {"width": 1200, "height": 1500}, {"width": 390, "height": 1900}
ASKED = Form(model="sdxl", card="rtx-4060-8gb", budget="6GB")
PATIENCE = 600_000


def main(word: str = "") -> None:
    IMAGES.mkdir(exist_ok=True)
    with browser() as chromium, served() as address, written() as plan:
        link = f"{address}?{forms.query(forms.completed(ASKED))}"
        for name, size, theme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "light"), ("dark", DESKTOP, "dark")):
            if word in f"page-{name}":
                take(chromium, f"page-{name}", link, size, theme)
            if word in f"report-{name}":
                take(chromium, f"report-{name}", plan, size, theme)
        if word in "page-budgets":
            take(chromium, "page-budgets", link, DESKTOP, "light", turned="Budgets")


@contextmanager
def browser() -> Iterator[Any]:
    program = shutil.which("chromium")
    assert program, "apt-get install chromium"
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=program, args=root)
        yield chromium
        chromium.close()


@contextmanager
def served() -> Iterator[str]:
    there = page.serve(Desk(), ASKED, host="127.0.0.1")
    yield there.local_url
    there.close()


@contextmanager
def written() -> Iterator[str]:
    """The report of the same plan, as a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.html")
        file.write_text(report.page(auto.anatomy(ASKED.model, device=card(ASKED.card), budget=ASKED.budget)), "utf-8")
        yield file.as_uri()


def take(chromium: Any, name: str, address: str, size: dict[str, int], theme: str, turned: str = "") -> None:
    tab = chromium.new_page(viewport=size, color_scheme=theme)
    tab.goto(address)
    tab.wait_for_selector("svg.vp:has-text('What each change saves')", state="attached", timeout=PATIENCE)
    if turned:
        tab.get_by_role("tab", name=turned).click()
        tab.wait_for_selector("#budgets svg.vp:visible", timeout=PATIENCE)
        tab.wait_for_selector("#budgets .searching", state="detached", timeout=PATIENCE)
    tab.wait_for_timeout(1000)
    file = IMAGES / f"{name}.png"
    tab.screenshot(path=file)
    tab.close()
    shrink(file)


def shrink(file: Path) -> None:
    """At most 256 colours: what is drawn here has few."""
    from PIL import Image

    Image.open(file).convert("RGB").quantize(dither=Image.Dither.NONE, method=Image.Quantize.MAXCOVERAGE).save(
        file, optimize=True
    )
    print(file.name, file.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
