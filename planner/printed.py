"""Answers: what each command prints under `--json`, and the schema of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from planner import schema
from planner.calibration import Calibration
from planner.cards import catalogue
from planner.device import Device
from planner.minimum import Smallest
from planner.plan import Infeasible, Plan
from planner.profiles import DefaultRequest
from planner.surveys import Anatomy, Frontier, Largest, Row
from planner.tables import by_family, weights
from planner.verify import Row as Compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A plan and what its run showed."""

    plan: Plan
    """The plan that was applied."""
    seconds: float
    """Of the call, as a clock on the wall shows them."""
    allocated: int | None
    """Bytes of `torch.cuda.max_memory_allocated`; None where it ran without a card."""
    reserved: int | None
    """Bytes of `torch.cuda.max_memory_reserved`; None where it ran without a card."""
    files: tuple[Path, ...]
    """What was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline that can be planned by name."""

    name: str
    """What `vram-planner plan` takes."""
    family: str
    """What it is listed under."""
    hub_id: str
    """The repository of its weights."""
    aliases: tuple[str, ...]
    """Further names it goes by."""
    pipeline: str
    """Class name, of diffusers."""
    dtype: str
    """Dtype in which people load it."""
    license: str
    """Of the weights, as their publisher names it."""
    weights: int
    """Bytes of all components that are loaded, each in its dtype."""
    request: DefaultRequest
    """What is generated when nothing is said."""
    optional: tuple[str, ...]
    """Components that `--with` loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card that can be planned for by name."""

    slug: str
    """What `--gpu` takes."""
    label: str
    """As people write it."""
    device: Device
    """Its figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A card of this machine, measured."""

    calibration: Calibration
    """What was measured."""
    file: Path
    """Where it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A run held against its promise."""

    held: bool
    """Whether it stayed within its budget."""
    rows: tuple[Compared, ...]
    """The whole call first, then phase by phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What went wrong; the exit code is 3 where nothing fits, else 2."""

    error: str
    """One sentence: what was asked, the number in the way, what to do."""
    kind: str
    """Name of the error's class, `Infeasible` where no combination fits; the rest is None unless it is that."""
    phase: str | None = None
    """The phase in which even the leanest combination is over."""
    over: int | None = None
    """Bytes it is over."""
    smallest_budget: int | None = None
    """Bytes with which it would fit, CUDA's context included."""
    largest_size: str | None = None
    """Width×height in pixels of the largest result that would fit; None or empty where none was found."""
    leanest: Plan | None = None
    """The combination that needs least."""


PRINTED: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "plan": (Plan, "What `vram-planner plan --json` prints."),
        "run": (Ran, "What `vram-planner run --json` prints."),
        "max": (Largest, "What `vram-planner max --json` prints."),
        "min": (Smallest, "What `vram-planner min --json` prints."),
        "compare": (tuple[Row, ...], "What `vram-planner compare --json` prints: each card under each budget."),
        "frontier": (Frontier, "What `vram-planner frontier --json` prints."),
        "explain": (Anatomy, "What `vram-planner explain --json` prints."),
        "profiles": (tuple[Pipeline, ...], "What `vram-planner profiles --json` prints, by family."),
        "gpus": (tuple[Card, ...], "What `vram-planner profiles --gpus --json` prints."),
        "probe": (tuple[Device, ...], "What `vram-planner probe --json` prints, in CUDA's order."),
        "calibrate": (Calibrated, "What `vram-planner calibrate --json` prints."),
        "verify": (Verified, "What `vram-planner verify --json` prints."),
        "error": (Refusal, "What any command prints with `--json` where it exits with 2 or 3."),
    }
)
"""Class and description by name; each name but `gpus` and `error` is a command's."""


def document(name: str) -> schema.Schema:
    """The JSON Schema (2020-12) of what is printed under `name`, one of PRINTED."""
    kind, description = PRINTED[name]
    return schema.document(name, kind, description)


def pipelines() -> tuple[Pipeline, ...]:
    """The shipped pipelines by family."""
    plain = ("name", "family", "hub_id", "aliases", "pipeline", "dtype", "license")
    return tuple(
        Pipeline(
            **{name: getattr(profile, name) for name in plain},
            weights=weights(profile),
            request=profile.defaults,
            optional=tuple(part.name for part in profile.components if part.optional),
        )
        for profile in by_family()
    )


def cards() -> tuple[Card, ...]:
    """The cards that can be planned for."""
    return tuple(Card(slug=known.slug, label=known.name, device=known.device) for known in catalogue())


def refusal(error: Exception, sentence: str) -> Refusal:
    """An error with its evidence."""
    if not isinstance(error, Infeasible):
        return Refusal(error=sentence, kind=type(error).__name__)
    plain = {name: getattr(error, name) for name in ("phase", "over", "smallest_budget", "largest_size", "leanest")}
    return Refusal(error=sentence, kind="Infeasible", **plain)
