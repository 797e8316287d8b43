"""How long the web page takes to answer a change, in a real browser: from the click to the new verdict on the screen.

    python benchmarks/page_time.py > benchmarks/results/page_time.md

Needs the extra `browser` and chromium.  Programs and what cuDNN answers are on disk; every card and budget is asked
about for the first time, so that nothing is answered from a plan that is kept.  Seconds are of the processor, of the
process that serves the page, so that a busy machine changes them little; what the browser draws is not among them.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.web import form as forms
from planner.web import page
from planner.web.desk import Desk
from planner.web.form import Form

sys.path.append(str(Path(__file__).parent.parent / "docs"))

from screenshots import browser

BOUND = 1.0
"""Seconds within which a change is to be answered."""
PATIENCE = 600_000
STORIES = (
    Form(model="sd15", card="rtx-3070", width=3840, height=2224, steps=20),
    Form(model="sdxl", card="rtx-4060-8gb"),
    Form(model="flux1-dev", card="rtx-4090"),
)
CHANGES = (
    ("another card", "card", "rtx-4080"),
    ("a budget", "budget", "12GB"),
    ("a tighter budget", "budget", "8GB"),
    ("another fidelity", "fidelity", "lossy"),
    ("plain diffusers", "plain", True),
)
"""Made one after the other, each on the form that the one before left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Seconds until the verdict can be read, and until the pictures below it are those of the new plan in detail."""

    verdict: float
    pictures: float


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        cache = Path(folder)
        for story in STORIES:
            for form in (story, *(form for _, form in changed(story))):
                Desk(cache).anatomy(forms.completed(form))
        answers = [(story, told(chromium, story, cache)) for story in STORIES]
    print(
        f"# How long the page takes\n\n`python benchmarks/{Path(__file__).name}`; Python {platform.python_version()},"
    )
    print(f"{os.cpu_count()} cores, {platform.machine()}, no GPU; chromium on the same machine.\n")
    print("From a change to the answer on the screen, seconds of the processor in the process that serves the page;")
    print(f"a change is to be answered within {BOUND:.0f} s.\n")
    print("| call | change | verdict | pictures in detail |\n|---|---|---:|---:|")
    for story, seen in answers:
        whole = forms.completed(story)
        for (words, _, value), answer in zip(CHANGES, seen, strict=True):
            what = f"{words}: {value}" if isinstance(value, str) else words
            call = f"{story.model} {whole.width}×{whole.height}"
            print(f"| {call} | {what} | {answer.verdict:.2f} s | {answer.pictures:.2f} s |")


def changed(form: Form) -> Iterator[tuple[str, Form]]:
    """The form after each change."""
    for _, name, value in CHANGES:
        form = replace(form, **{name: value})
        yield name, form


def told(chromium: Any, story: Form, cache: Path) -> list[Answer]:
    """How long each change took, on a page that was opened with the call and is asked for the first time."""
    shutil.rmtree(cache / "answers", ignore_errors=True)
    served = page.serve(Desk(cache), story, host="127.0.0.1")
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    try:
        opened = forms.query(forms.completed(story))
        tab.goto(f"{served.local_url}?{opened}")
        tab.wait_for_function(READ, arg=opened, timeout=PATIENCE)
        tab.evaluate(WATCH)
        settled(tab, opened)
        return [measured(tab, name, form) for name, form in changed(story)]
    finally:
        tab.close()
        served.close()


def measured(tab: Any, name: str, form: Form) -> Answer:
    """Make a change and wait for both answers."""
    link = forms.query(forms.completed(form))
    act = prepared(tab, name, getattr(form, name))
    start = time.process_time()
    act()
    tab.wait_for_function(READ, arg=link, polling=10, timeout=PATIENCE)
    verdict = time.process_time()
    settled(tab, link)
    return Answer(verdict=verdict - start, pictures=time.process_time() - start)


READ = "link => document.querySelector('#verdict a.share')?.getAttribute('href') === '?' + link"
WATCH = """() => {
  window.drawn = performance.now();
  new MutationObserver(() => { window.drawn = performance.now(); }).observe(
    document.querySelector("#pictures"), { subtree: true, childList: true, characterData: true });
}"""
"""Notes when the pictures were last drawn: first as the plan alone says, then with its memory in detail."""
QUIET = "() => performance.now() - window.drawn > 4000"


def settled(tab: Any, link: str) -> None:
    """Wait until the pictures of this answer have not changed for a while."""
    tab.wait_for_function(READ, arg=link, timeout=PATIENCE)
    tab.wait_for_function(QUIET, timeout=PATIENCE)


def prepared(tab: Any, name: str, value: Any) -> Callable[[], None]:
    """All but the last click or key of a change: people are not timed."""
    field = tab.locator(f"#field-{name} input, #field-{name} textarea").first
    if name == "card":
        field.click()
        field.press("Control+A")
        words = next(shown for shown, slug in forms.cards() if slug == value)
        field.press_sequentially(words.partition(" ·")[0])
        entry = tab.get_by_role("option").get_by_text(words).first
        entry.wait_for()
        return entry.click  # type: ignore[no-any-return]
    if name == "fidelity":
        return tab.get_by_label(value, exact=True).check  # type: ignore[no-any-return]
    if name == "plain":
        return field.check  # type: ignore[no-any-return]
    field.fill(value)
    return lambda: field.press("Enter")


if __name__ == "__main__":
    sys.exit(main())
