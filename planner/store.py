"""Programs on disk, by content: a second plan for the same call needs no trace and no torch."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from planner import program as p
from planner.collector import SELDOM, collecting
from planner.program import Component, Event, Kernel, Program, Recording, Setting, Stack, Unit, Variant

FORMAT = 33
"""Version of the stored form and of the recorder; raise it when either changes."""
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
OPTIONAL = ("torchao", "gguf")
"""What quantizes, where it is installed."""
KERNELS: tuple[type[Kernel], ...] = (p.Plain, p.Matmul, p.Conv, p.Attention, p.Reduction)
EVENTS: tuple[type[Event], ...] = (p.Alloc, p.Free, p.Run, p.Call, p.Enter, p.Exit, p.Cast, p.Gone, p.Ending)
"""Those of a recording; placement, which is not stored, adds the others."""

TABLES = ("kernels", "recordings", "family", "placed")
"""Fields of a program that its family shares, or that are not stored."""
FLAT = frozenset(EVENTS.index(kind) for kind in (p.Alloc, p.Free, p.Run))
"""Events that are numbers only; nearly all are."""


def key_of(*facts: object) -> str:
    """A name for what was recorded: the facts given, and the versions of the recorder and of the libraries."""
    versions = {name: version(name) for name in LIBRARIES} | {name: _version(name) for name in OPTIONAL}
    text = json.dumps([FORMAT, versions, *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@collecting(SELDOM)
def load(folder: Path, key: str) -> tuple[Program, ...]:
    """The programs stored under `key`; none where there is no file, or none that can be read."""
    try:
        families = json.loads((folder / f"{key}.json").read_bytes())
        return tuple(made for number, family in enumerate(families) for made in _unpacked(family, f"{key}/{number}"))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ()


def save(folder: Path, key: str, programs: Sequence[Program]) -> None:
    """Store programs under `key`."""
    families: dict[str, list[Program]] = {}
    for made in programs:
        families.setdefault(made.family, []).append(made)
    text = json.dumps([_packed(members) for members in families.values()], separators=(",", ":"))
    written_whole(folder / f"{key}.json", text)


def written_whole(file: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False) as part:
        part.write(text)
    os.replace(part.name, file)  # noqa: PTH105  (the part's name is text)


def _packed(members: Sequence[Program]) -> dict[str, Any]:
    """The longest table holds all shorter ones, since a family's tables only grow."""
    longest = max(members, key=lambda member: len(member.recordings))
    most = max(members, key=lambda member: len(member.kernels))
    needed = set().union(*(_reached(longest, member.course) for member in members))
    return {
        "kernels": [_row(KERNELS, kernel) for kernel in most.kernels],
        "recordings": [
            [r.name, r.own, [_row(EVENTS, e) for e in r.events]] if place in needed else ["", [], []]
            for place, r in enumerate(longest.recordings)
        ],
        "programs": [_heading(member) for member in members],
    }


def _reached(table: Program, course: int) -> set[int]:
    """Places of the bodies a course calls, itself included; the table may hold those of other requests too."""
    reached, waiting = {course}, [course]
    while waiting:
        called = {e.recording for e in table.recordings[waiting.pop()].events if isinstance(e, p.Call)}
        waiting += called - reached
        reached |= called
    return reached


def _row(kinds: Sequence[type], value: Any) -> list[Any]:
    given = value if isinstance(value, tuple) else (getattr(value, f.name) for f in fields(value))
    return [kinds.index(type(value)), *given]


def _heading(member: Program) -> dict[str, Any]:
    own = {f.name: getattr(member, f.name) for f in fields(member) if f.name not in TABLES}
    variant = asdict(member.variant) | {"channels_last": sorted(member.variant.channels_last)}
    components = [asdict(c) | {"traits": sorted(c.traits)} for c in member.components]
    return own | {"variant": variant, "components": components, "excluded": sorted(member.excluded)}


def _unpacked(family: dict[str, Any], name: str) -> Iterable[Program]:
    kernels = tuple(KERNELS[kind](*map(_frozen, given)) for kind, *given in family["kernels"])
    recordings = tuple(
        Recording(name=title, own=tuple(own), events=tuple(map(_event, events)))
        for title, own, events in family["recordings"]
    )
    for heading in family["programs"]:
        variant = heading["variant"]
        sets = {
            "channels_last": frozenset(variant["channels_last"]),
            "settings": tuple(Setting(*setting) for setting in variant["settings"]),
        }
        yield Program(
            **heading
            | {
                "variant": Variant(**variant | sets),
                "components": tuple(map(_component, heading["components"])),
                "chain": tuple(heading["chain"]),
                "excluded": frozenset(heading["excluded"]),
            },
            kernels=kernels,
            recordings=recordings,
            family=name,
        )


def _event(row: list[Any]) -> Event:
    """An event by its fields, all of which are stored; made as a plain tuple, which is all that it checks."""
    kind, *given = row
    event: Event = tuple.__new__(EVENTS[kind], given if kind in FLAT else map(_frozen, given))
    return event


def _component(data: dict[str, Any]) -> Component:
    sizes = {name: tuple(data[name]) for name in ("weights", "anchored", "lasting")}
    units = {name: tuple(map(_unit, data[name])) for name in ("units", "tables")}
    stacks = tuple(_stack(*stack) for stack in data["stacks"])
    return Component(**data | sizes | units | {"traits": frozenset(data["traits"]), "stacks": stacks})


def _unit(data: list[Any]) -> Unit:
    paths, places = data
    return Unit(tuple(paths), tuple(places))


def _stack(path: str, lists: list[Any], *places: list[int]) -> Stack:
    return Stack(path, tuple(tuple(map(_unit, blocks)) for blocks in lists), *map(tuple, places))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
