"""Lessons: how runs compared with their promises, kept for components of that class, dtype, layout and card."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.program import Program

KEPT = 16
"""Runs that are remembered of one kind; older ones are forgotten."""

Key = tuple[str, str, str, str, str]
"""Class, dtype, layout and card, and `memory` or `seconds`."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """Ratios measured ÷ promised."""

    ratios: Mapping[Key, tuple[float, ...]] = field(default_factory=dict)

    def memory(self, *kind: str) -> float:
        """What promised bytes are multiplied by: never below 1 unless it was seen more than once."""
        seen = self.ratios.get((*kind, "memory"), ())  # type: ignore[arg-type]
        ratio = statistics.median(seen) if seen else 1.0
        return ratio if len(seen) > 1 else max(ratio, 1.0)

    def seconds(self, *kind: str) -> float:
        """What promised seconds are multiplied by."""
        seen = self.ratios.get((*kind, "seconds"), ())  # type: ignore[arg-type]
        return statistics.median(seen) if seen else 1.0

    def knows(self, *kind: str) -> bool:
        """Whether bytes of such a component were ever measured."""
        return (*kind, "memory") in self.ratios

    def learned(self, found: Mapping[Key, float]) -> Lessons:
        """These and one more run."""
        more = {key: (*self.ratios.get(key, ()), ratio)[-KEPT:] for key, ratio in found.items()}
        return Lessons({**self.ratios, **more})


NONE = Lessons()


def kind_of(program: Program, component: str, card: str) -> tuple[str, str, str, str]:
    """Class, dtype, layout and card of a component as a program runs it."""
    part = program.component(component)
    layout = "channels_last" if component in program.variant.channels_last else "contiguous"
    return part.kind, program.variant.dtype or part.dtype, layout, card


def file() -> Path:
    """Where this user's lessons are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("vram-planner")) / "lessons.json"


def read(place: Path | None = None) -> Lessons:
    """What was learned on this machine; nothing where there is no file, or none that can be read."""
    try:
        rows = json.loads((place or file()).read_text("utf-8"))
        return Lessons(
            {(kind, dtype, layout, card, what): tuple(seen) for kind, dtype, layout, card, what, seen in rows}
        )
    except (OSError, ValueError, TypeError):
        return NONE


def write(lessons: Lessons, place: Path | None = None) -> None:
    """Keep them."""
    where = place or file()
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps([[*key, list(seen)] for key, seen in lessons.ratios.items()], indent=1), "utf-8")
