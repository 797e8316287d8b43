"""View: what the page shows for a form, as HTML and text; pure functions of plans, surveys and errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from planner import drawing, pictures, report, snippet
from planner.errors import PlannerError
from planner.plan import Infeasible, Plan
from planner.surveys import Anatomy, Frontier
from planner.web.form import Form, query

EXAMPLES = (
    ("4K on 8 GB", Form(model="sd15", card="rtx-3070", width=3840, height=2224)),
    ("FLUX.1-dev on 12 GB", Form(model="flux1-dev", card="rtx-3060-12gb")),
    ("Wan 2.1 video on 24 GB", Form(model="wan2.1-t2v-14b", card="rtx-4090")),
    ("Qwen-Image on 16 GB", Form(model="qwen-image", card="rtx-4060-ti-16gb")),
)
PAPER = "var(--body-background-fill)"
WITHIN = ".gradio-container .prose .plan"
"""Gradio has rules of its own for what is in a page; these come first."""
STYLE = f"""
{report.STYLE.replace(".plan ", f"{WITHIN} ")}
{WITHIN} {{ --ink: var(--body-text-color);
  --rule: var(--border-color-primary); --paper: transparent; --code: var(--block-background-fill); font-size: 15px; }}
body.dark {WITHIN} {{ --good: #4fd1bd; --bad: #ff7686; --faint: #98a2b3; }}
body:not(.dark) {WITHIN} {{ --good: #14796b; --bad: #c02b40; --faint: #667080; }}
{WITHIN} :is(table, thead, tbody, tr, th, td) {{ border-width: 0; }}
{WITHIN} :is(th, td) {{ border-bottom: 1px solid var(--rule); }}
{drawing.themed("body:not(.dark) .vp", drawing.LIGHT._replace(paper=PAPER))}
{drawing.themed("body.dark .vp", drawing.DARK._replace(paper=PAPER))}
"""
"""Gradio says in the class of the body which of light and dark is shown, whatever the system prefers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that changes with the form."""

    verdict: str
    pictures: str
    reasons: str
    code: str


def answer(form: Form, plan: Plan, anatomy: Anatomy | None = None) -> View:
    """A plan; finer where its anatomy is known."""
    return View(
        verdict=_page((*report.verdict(plan), _share(form))),
        pictures=_page(_pictures(plan, anatomy)),
        reasons=_page(_reasons(plan, anatomy)),
        code=snippet.code(plan),
    )


def refusal(error: PlannerError, form: Form | None = None) -> View:
    """What is in the way, in the error's own sentence; with what the leanest combination would need where one is."""
    sentence = f'<p class="refusal" role="alert">{escape(" ".join(str(error).split()))}</p>'
    share = _share(form) if form else ""
    if not isinstance(error, Infeasible):
        return View(verdict=_page((sentence, share)), pictures="", reasons="", code="")
    plan = error.leanest
    return View(
        verdict=_page((*report.verdict(plan, error.over), sentence, share)),
        pictures=_page(("<h2>The leanest combination</h2>", *_pictures(plan, None))),
        reasons=_page(_reasons(plan, None)),
        code="",
    )


def budgets(found: Frontier, *, searching: bool) -> str:
    """What each budget buys, as far as it is known."""
    more = '<p class="faint searching">Looking for what still runs within less …</p>' if searching else ""
    return _page((report.drawn(lambda frame: pictures.frontier(found, frame)) if found.points else "", more))


def waiting(words: str) -> str:
    """Where nothing is known yet."""
    return _page((f'<p class="faint">{escape(words)}</p>',))


def heading() -> str:
    """The top of the page, with questions to begin with."""
    links = (f'<a href="?{escape(query(form))}">{escape(words)}</a>' for words, form in EXAMPLES)
    return _page((
        "<h1>vram-planner</h1>",
        '<p class="faint">The fastest way to run a diffusers pipeline in the memory there is, and why.</p>',
        f'<p class="examples">{" ".join(links)}</p>',
    ))  # fmt: skip


def _pictures(plan: Plan, anatomy: Anatomy | None) -> Iterator[str]:
    yield report.drawn(lambda frame: pictures.memory(plan, anatomy, frame))
    if anatomy and len(anatomy.steps) > 1:
        yield report.drawn(lambda frame: pictures.techniques(anatomy, frame))
    yield from ("<h2>Phase by phase</h2>", report.phases(plan), "<h2>Switched on</h2>", report.options(plan))


def _reasons(plan: Plan, anatomy: Anatomy | None) -> Iterator[str]:
    yield from report.reasons(plan)
    if anatomy:
        yield from ("<h2>Who holds the memory at the peak</h2>", *report.holders(anatomy))


def _share(form: Form) -> str:
    return f'<p class="faint"><a class="share" href="?{escape(query(form))}">Link to this page</a></p>'


def _page(parts: Iterable[str]) -> str:
    return f'<div class="plan">{"".join(parts)}</div>'
