"""The results page of the accuracy matrix: errors by pipeline family, technique, architecture and phase; verdicts."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from comparing import FITS, NOT, Compared
from measuring import FAILED, OUT, RAN, WHOLE, options_of

from planner import profiles
from planner.cards import catalogue

MOVING = ("placement=model", "split=")
"""Under these a phase is measured from before its predecessor, or the call before, has left: in no summary by phase."""
LARGE = 0.01
"""Errors of the allocated peak above this are explained one by one."""
HEAD = "| rows | median | 95 % within | least | greatest |"
RULE = "|---:|---:|---:|---:|---:|"

Causes = Mapping[tuple[str, str], str]
"""What makes an error, by cell and phase."""


def page(rows: Sequence[Compared], command: str, ran_on: Mapping[str, str], causes: Causes) -> str:
    """The whole page, as Markdown."""
    whole = [row for row in rows if row.phase == WHOLE]
    day = datetime.now(tz=timezone.utc).date().isoformat()
    lines = [
        "# Predicted and measured memory",
        "",
        f"`{command}`, {day}; {', '.join(f'{name} {version}' for name, version in ran_on.items())}.",
        _drawn(whole),
        "Predicted from configurations alone; measured as `torch.cuda.max_memory_allocated` and `max_memory_reserved`",
        "on the virtual GPU, with as much memory as the cap; where that ran out, once more on a card with room.",
        "Error is predicted ÷ measured − 1: above zero, too much was promised.  Bytes of every phase: accuracy.csv.",
        "",
        "![predicted against measured](accuracy.svg)",
        "",
        f"| whole calls {HEAD}",
        f"|---{RULE}",
        *_both("all", whole),
        "",
        *_verdicts(whole),
        *_by("pipeline family", whole, family),
        *_by_each("technique", whole, _techniques),
        *_by("architecture", whole, _architecture),
        *_by("phase", [row for row in rows if not _moves(row)], lambda row: _kind(row.phase)),
        *_large(rows, causes),
        *_left_out(whole),
    ]
    return "\n".join(lines) + "\n"


def _drawn(whole: Sequence[Compared]) -> str:
    models, cards, sets = ({of(row) for row in whole} for of in (lambda r: r.model, lambda r: r.card, _techniques))
    return (
        f"{len(whole)} cells drawn at random: {len(models)} pipelines, {len(cards)} cards, "
        f"{len(sets)} sets of techniques."
    )


def family(row: Compared) -> str:
    """The pipeline's class without the words that tell its task."""
    words = re.split(
        r"Pipeline|Img2Img|Inpaint|ControlNet|ImageToVideo|Adapter|Edit", profiles.find(row.model).pipeline
    )
    return words[0]


def placement(row: Compared) -> str:
    """Where the weights wait: `resident`, `model`, `group` …"""
    return next((str(o.value).partition(":")[0] for o in options_of(row.options) if o.technique == "placement"), "")


def read_causes(file: Path) -> Causes:
    """What was found to make large errors; empty where nothing was looked for."""
    if not file.exists():
        return {}
    with file.open(newline="") as lines:
        return {(row["cell"], row["phase"]): row["cause"] for row in csv.DictReader(lines)}


def stated(name: str, errors: Sequence[float]) -> str:
    """One row of a table of errors."""
    size = sorted(map(abs, errors))
    near = size[math.ceil(0.95 * len(size)) - 1]
    middle = statistics.median(size)
    return f"| {name} | {len(size)} | {middle:.2%} | {near:.2%} | {min(errors):+.2%} | {max(errors):+.2%} |"


def _both(name: str, rows: Iterable[Compared]) -> Iterator[str]:
    pairs = [row.errors for row in rows if row.has_errors]
    if pairs:
        yield stated(f"allocated, {name}", [a for a, _ in pairs])
        yield stated(f"reserved, {name}", [r for _, r in pairs])


def _verdicts(whole: Sequence[Compared]) -> Iterator[str]:
    seen = Counter((row.said, row.outcome) for row in whole)
    yield from ("| under the cap | ran | ran out of memory |", "|---|---:|---:|")
    yield from (f"| said: {said} | {seen[said, RAN]} | {seen[said, OUT]} |" for said in (FITS, NOT))
    yield ""


def _by(what: str, rows: Sequence[Compared], key: Callable[[Compared], str]) -> Iterator[str]:
    return _by_each(what, rows, lambda row: (key(row),))


def _by_each(what: str, rows: Sequence[Compared], keys: Callable[[Compared], Iterable[str]]) -> Iterator[str]:
    groups: dict[str, list[Compared]] = defaultdict(list)
    for row in rows:
        for key in keys(row):
            groups[key].append(row)
    yield from (f"## By {what}", "", f"| {what} {HEAD}", f"|---{RULE}")
    for index, peak in enumerate(("allocated", "reserved")):
        for name in sorted(groups):
            if errors := [row.errors[index] for row in groups[name] if row.has_errors]:
                yield stated(f"{peak}, {name}", errors)
    yield ""


def _techniques(row: Compared) -> tuple[str, ...]:
    """Names of the techniques; of placement, the way of placing."""
    return tuple(placement(row) if o.technique == "placement" else o.technique for o in options_of(row.options))


def _moves(row: Compared) -> bool:
    return any(word in row.options for word in MOVING)


def _architecture(row: Compared) -> str:
    known = next(known.device for known in catalogue() if known.slug == row.card)
    return ".".join(map(str, known.compute_capability))


def _kind(phase: str) -> str:
    """`text_encoder_2` is one of the text encoders."""
    return re.sub(r"_\d+$", "", phase)


def _large(rows: Sequence[Compared], causes: Causes) -> Iterator[str]:
    """Every error of an allocated peak that is large, and what makes it as far as it was traced."""
    counted = (row for row in rows if row.has_errors and (row.phase == WHOLE or not _moves(row)))
    large = [row for row in counted if abs(row.errors[0]) > LARGE]
    yield from (f"## Errors above {LARGE:.0%} of an allocated peak", "")
    if not large:
        yield from ("None.", "")
        return
    yield from (
        "| cell | pipeline | size | card | options | phase | error | what makes it |",
        "|---|---|---|---|---|---|---:|---|",
    )
    for row in sorted(large, key=lambda row: row.phase != WHOLE):
        cause = causes.get((row.cell, row.phase), "")
        asked = f"{row.cell} | {row.model} | {row.size} × {row.images} | {row.card} | {row.options}"
        yield f"| {asked} | {row.phase} | {row.errors[0]:+.2%} | {cause} |"
    yield ""


def _left_out(whole: Sequence[Compared]) -> Iterator[str]:
    """Cells without a comparison, and why."""
    lost = [row for row in whole if FAILED in (row.outcome[: len(FAILED)], row.said[: len(FAILED)])]
    yield from ("## Left out", "")
    if not lost:
        yield "None."
    for row in lost:
        why = row.outcome if row.outcome.startswith(FAILED) else row.said
        yield f"- {row.cell} {row.model} {row.size} {row.options} on {row.card}: {why}"
