"""Report: a plan as one HTML page that loads nothing from anywhere, in light and in dark, and for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from planner import explain, pictures, snippet
from planner.drawing import BROAD, NARROW, Frame
from planner.meanings import meaning
from planner.plan import Plan
from planner.request import Fidelity
from planner.surveys import Anatomy
from planner.units import format_bytes, format_seconds

STYLE = """
.plan { --ink: #1c2430; --faint: #667080; --rule: #dfe3ea; --paper: #fff; --code: #f5f6f9; --good: #14796b;
  --bad: #c02b40; color: var(--ink); background: var(--paper); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-size: 16px; }
@media (prefers-color-scheme: dark) { .plan { --ink: #e6e9ef; --faint: #98a2b3; --rule: #2b323d; --paper: #14181f;
  --code: #1c222b; --good: #4fd1bd; --bad: #ff7686; } }
.plan main { max-width: 860px; margin: 0 auto; padding: 24px 20px 48px; }
.plan h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; }
.plan h2 { font-size: 1.1rem; margin: 36px 0 8px; }
.plan p { margin: 4px 0; }
.plan .faint { color: var(--faint); }
.plan .figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 8px; }
.plan .figure { flex: 1 1 120px; border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; }
.plan .figure b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.plan .good { color: var(--good); } .plan .bad { color: var(--bad); }
.plan .scroll { overflow-x: auto; }
.plan table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.plan th, .plan td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; background: none; color: inherit; }
.plan th { font-weight: 600; color: var(--faint); } .plan .n { text-align: right; white-space: nowrap; }
.plan tr.most td { font-weight: 600; }
.plan code, .plan pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.86rem; }
.plan pre { background: var(--code); color: inherit; border-radius: 8px; padding: 14px 16px; overflow-x: auto; }
.plan td code, .plan p code { overflow-wrap: anywhere; }
.plan .options code { white-space: pre-wrap; }
.plan .options td:first-child { width: 42%; } .plan .options p { color: var(--faint); font-size: 0.88rem; }
.plan td:first-child { min-width: 8em; } .plan td:last-child:has(code) { min-width: 17em; }
.plan svg { display: block; height: auto; }
.plan .narrow { display: none; }
@media (max-width: 620px) {
  .plan main { padding: 16px 16px 40px; }
  .plan .broad, .plan .options th, .plan .reasons th { display: none; }
  .plan .narrow { display: block; }
  .plan table { font-size: 0.78rem; }
  .plan tr { display: grid; border-bottom: 1px solid var(--rule); padding: 3px 0; }
  .plan th, .plan td { border: 0 !important; min-width: 0 !important; padding: 2px 0 !important; }
  .plan .options tr { grid-template-columns: 1fr auto; }
  .plan .phases tr { grid-template-columns: repeat(5, 1fr); }
  .plan .phases th { font-size: 0.66rem; }
  .plan .holders tr { grid-template-columns: 5em 4em 7em 1fr; column-gap: 10px; }
  .plan .options td:last-child, .plan .phases :is(th, td):first-child { grid-column: 1 / -1; }
  .plan .holders :is(th, td):nth-child(4) { grid-column: 1 / -1; grid-row: 2; }
}
"""


def page(anatomy: Anatomy) -> str:
    """The whole document: choices, reasons, pictures, phases, who holds the memory, code."""
    plan = anatomy.plan
    title = f"{plan.model} {explain.size(plan.request)} in {format_bytes(plan.budget)}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE} body {{ margin: 0; }}</style></head>"
        f'<body class="plan"><main>{"".join(_sections(plan, anatomy))}</main></body></html>\n'
    )


def cell(plan: Plan) -> str:
    """A plan in a notebook: verdict, picture and phases."""
    parts = (*verdict(plan), pictures.memory(plan), phases(plan), *_code(plan))
    return f'<style>{STYLE}</style><div class="plan"><main>{"".join(parts)}</main></div>'


def _sections(plan: Plan, anatomy: Anatomy) -> Iterator[str]:
    yield from verdict(plan)
    yield from ("<h2>Memory over time</h2>", drawn(lambda frame: pictures.memory(plan, anatomy, frame)))
    if len(anatomy.steps) > 1:
        yield drawn(lambda frame: pictures.techniques(anatomy, frame))
    yield from ("<h2>Switched on</h2>", options(plan))
    yield from ("<h2>Phase by phase</h2>", phases(plan))
    yield from ("<h2>Who holds the memory at the peak</h2>", *holders(anatomy))
    yield from _code(plan)
    yield from reasons(plan)


def verdict(plan: Plan, over: int | None = None) -> Iterator[str]:
    """What was asked, the figures that matter most, and what is switched on.

    `over`: bytes missing, where fragments make them more than the promise says.
    """
    free = plan.headroom if over is None else -over
    fits = free >= 0
    outcome = f"{'fits' if fits else 'does not fit'} in {format_bytes(plan.budget)}"
    subject = f"{plan.model} {explain.size(plan.request)}".strip()
    yield f'<h1>{escape(subject)} <span class="{"good" if fits else "bad"}">{outcome}</span></h1>'
    yield f'<p class="faint">on {escape(plan.device.name)}, {escape(plan.pipeline)}, {escape(plan.dtype)}</p>'
    figures = (
        ("needed", format_bytes(plan.promise.needed), f"of {format_bytes(plan.budget)}", ""),
        ("stays free" if fits else "over", format_bytes(abs(free)), "at the peak", "good" if fits else "bad"),
        ("time", format_seconds(plan.promise.seconds), "for one call", ""),
        (
            "unchanged",
            format_bytes(plan.baseline.needed),
            "fits too" if plan.baseline_fits else "does not fit",
            "",
        ),
    )
    boxes = (
        f'<div class="figure"><span class="faint">{name}</span><b class="{look}">{value}</b>'
        f'<span class="faint">{more}</span></div>'
        for name, value, more, look in figures
    )
    yield f'<div class="figures">{"".join(boxes)}</div>'
    yield f"<p>{escape(explain.switched_on(plan))}</p>"


def options(plan: Plan) -> str:
    """What the plan chooses, what that does, and how to do it by hand."""
    rows = (
        (f"<code>{escape(snippet.spoken(option))}</code><p>{escape(meaning(option))}</p>",
         Fidelity(option.fidelity).name.lower(), "<br>".join(f"<code>{escape(call)}</code>" for call in option.calls))
        for option in plan.options
    )  # fmt: skip
    return _table(("technique", "fidelity", "by hand"), rows, look="options")


def phases(plan: Plan) -> str:
    """Memory and time phase by phase; the one that needs most stands out."""
    worst = max(plan.promise.phases, key=lambda phase: phase.peak, default=None)
    rows = (
        (escape(p.name), *map(format_bytes, (p.weights, p.activations, p.scratch, p.peak)), format_seconds(p.seconds))
        for p in plan.promise.phases
    )
    marks = [phase is worst for phase in plan.promise.phases]
    return _table(
        ("phase", "weights", "activations", "workspace", "peak", "time"),
        rows,
        marks,
        numbers=range(1, 6),
        look="phases",
    )


def holders(anatomy: Anatomy) -> Iterator[str]:
    """Who holds the memory where most is held."""
    count = anatomy.count()
    yield f"<p>{format_bytes(count.peak)} in {escape(count.phase)}, while <code>{escape(count.at)}</code> runs.</p>"
    rows = (
        (format_bytes(h.bytes), count.share(h.bytes), h.kind,
         f"<code>{escape('.'.join(filter(None, (h.component, h.block))))}</code>", escape(h.op))
        for h in count.holdings[:12]
    )  # fmt: skip
    yield _table(("bytes", "share", "what", "where", "made by"), rows, numbers=(0, 1), look="holders")


def reasons(plan: Plan) -> Iterator[str]:
    """What was not chosen and why, notes, and where the figures come from."""
    if plan.rejected:
        rows = ((f"<code>{escape(r.what)}</code>", escape(r.reason)) for r in plan.rejected)
        yield from ("<h2>Not chosen</h2>", _table(("what", "why"), rows, look="reasons"))
    if plan.notes:
        yield "<h2>Notes</h2>" + "".join(f"<p>{escape(note)}</p>" for note in plan.notes)
    yield from ("<h2>Where this comes from</h2>", *(f"<p>{escape(line)}</p>" for line in explain.sources(plan)))


def _code(plan: Plan) -> Iterator[str]:
    yield f"<h2>To do the same by hand</h2><pre>{escape(snippet.code(plan))}</pre>"


def drawn(draw: Callable[[Frame], str]) -> str:
    """A picture as a page shows it, and as a phone does, of which the reader's screen takes one."""
    return f'<div class="broad">{draw(BROAD)}</div><div class="narrow">{draw(NARROW)}</div>'


def _table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    marks: Sequence[bool] = (),
    *,
    numbers: Sequence[int] = (),
    look: str = "",
) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        looks = (' class="n"' if place in numbers else "" for place in range(len(values)))
        return "".join(f"<{tag}{look}>{value}</{tag}>" for value, look in zip(values, looks, strict=True))

    lines = [f"<tr>{cells('th', names)}</tr>"]
    for place, row in enumerate(rows):
        most = ' class="most"' if place < len(marks) and marks[place] else ""
        lines.append(f"<tr{most}>{cells('td', row)}</tr>")
    return f'<div class="scroll"><table class="{look}">{"".join(lines)}</table></div>'
