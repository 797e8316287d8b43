"""The results page of the accuracy matrix: errors by pipeline family, technique, architecture and phase; verdicts."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparing import FITS, NOT, Compared
from measuring import FAILED, OUT, RAN, WHOLE, options_of

from planner import profiles
from planner.cards import catalogue

MOVING = ("placement=model", "split=")
"""Under these a phase of draws up to 2028 was measured from before its predecessor, or the call before, had left: in no
summary by phase, but among the large errors."""
LARGE, LARGE_RESERVED = 0.01, 0.08
"""Errors of the allocated peak, and of what a whole call reserves, above this are explained one by one."""
HEAD = "| rows | median | 95 % within | least | greatest |"
RULE = "|---:|---:|---:|---:|---:|"

VERDICT = "verdict"
"""Stands for a phase where the cause of a wrong verdict is kept."""

UNTRACED = "not traced"
"""The cause of an error that nobody has found yet."""

Causes = Mapping[tuple[str, str], str]
"""What makes an error, by cell and phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What no figure says about a draw."""

    said: str = ""
    """How it was made, and what was set apart: Markdown."""
    second_from: int = 0
    """The first setting of a second part, predicted later than the first; each has a row of its own."""


def page(
    rows: Sequence[Compared], command: str, ran_on: Mapping[str, str], causes: Causes, notes: Notes | None = None
) -> str:
    """The whole page, as Markdown."""
    notes = notes or Notes()
    whole = [row for row in rows if row.phase == WHOLE]
    lines = [
        "# Predicted and measured memory",
        "",
        f"`{command}`; {', '.join(f'{name} {version}' for name, version in ran_on.items())}.",
        _drawn(whole),
        "Predicted from configurations alone; measured as `torch.cuda.max_memory_allocated` and `max_memory_reserved`",
        "on the virtual GPU, with as much memory as the cap; where that ran out, once more on a card with room.",
        "Error is predicted ÷ measured − 1: above zero, too much was promised.  Bytes of every phase: accuracy.csv.",
        "",
        *((*notes.said.splitlines(), "") if notes.said else ()),
        "![predicted against measured](accuracy.svg)",
        "",
        f"| whole calls {HEAD}",
        f"|---{RULE}",
        *_both("all", whole),
        *_parts(whole, notes.second_from),
        "",
        *_verdicts(whole),
        *_by("pipeline family", whole, family),
        *_by_each("technique", whole, _techniques),
        *_by("architecture", whole, _architecture),
        *_by("phase", [row for row in rows if not _moves(row)], lambda row: _kind(row.phase)),
        *_large(rows, causes),
        *_wrong(whole, causes),
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


def read_notes(file: Path, seed: int) -> Notes:
    """What is noted about the draw of a seed, if anything is."""
    return Notes(**profiles.read_toml(file).get(str(seed), {})) if file.exists() else Notes()


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


def _parts(whole: Sequence[Compared], second_from: int) -> Iterator[str]:
    """The settings before a number and those from it on, if there are two parts."""
    if second_from:
        numbers = [int(re.split("[/.]", row.cell)[1]) for row in whole]  # 2027/56.1 is of setting 56
        numbered = list(zip(numbers, whole, strict=True))
        yield from _both(f"settings below {second_from}", [row for number, row in numbered if number < second_from])
        yield from _both(f"settings from {second_from}", [row for number, row in numbered if number >= second_from])


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
    """Every error that is large, whole calls first, and what makes it as far as it was traced."""
    large = sorted((row for row in rows if row.has_errors and _is_large(row)), key=lambda row: row.phase != WHOLE)
    limits = f"{LARGE:.0%} of an allocated peak, or {LARGE_RESERVED:.0%} of what a call reserves"
    yield from (f"## Errors above {limits}", "")
    if not large:
        yield from ("None.", "")
        return
    yield from (
        "| cell | pipeline | size | card | options | phase | allocated | reserved | what makes it |",
        "|---|---|---|---|---|---|---:|---:|---|",
    )
    for row in large:
        allocated, reserved = row.errors
        asked = f"{row.cell} | {row.model} | {row.size} × {row.images} | {row.card} | {row.options}"
        cause = causes.get((row.cell, row.phase), UNTRACED)
        yield f"| {asked} | {row.phase} | {allocated:+.2%} | {reserved:+.2%} | {cause} |"
    yield ""


def _is_large(row: Compared) -> bool:
    allocated, reserved = map(abs, row.errors)
    return allocated > LARGE or (row.phase == WHOLE and reserved > LARGE_RESERVED)


def _wrong(whole: Sequence[Compared], causes: Causes) -> Iterator[str]:
    """Cells said to fit that ran out of memory, and the other way round."""
    wrong = [row for row in whole if (row.said, row.outcome) in ((FITS, OUT), (NOT, RAN))]
    yield from ("## Wrong verdicts", "", *(() if wrong else ("None.",)))
    for row in wrong:
        asked = f"{row.model} {row.size} × {row.images} {row.options} on {row.card} with {row.cap / 1e9:g} GB"
        cause = causes.get((row.cell, VERDICT), UNTRACED)
        yield f"- {row.cell} {asked}: said {row.said}, {row.outcome}; {cause}"
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
