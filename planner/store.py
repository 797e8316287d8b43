"""Programs on disk, by content: a second plan for the same call needs no trace and no torch."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from planner import events as e
from planner import kernels as k
from planner.collector import SELDOM, collecting
from planner.events import Event
from planner.kernels import Kernel
from planner.program import Component, Program, Recording, Setting, Stack, Unit, Variant

FORMAT = 35
"""Version of the stored form and of the recorder; raise it when either changes."""
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
OPTIONAL = ("torchao", "gguf")
"""What quantizes, where it is installed."""
KERNELS: tuple[type[Kernel], ...] = (k.Plain, k.Matmul, k.Conv, k.Attention, k.Reduction)
EVENTS: tuple[type[Event], ...] = (e.Alloc, e.Free, e.Run, e.Call, e.Enter, e.Exit, e.Cast, e.Gone, e.Ending)
"""Those of a recording; placement, which is not stored, adds the others."""

TABLES = ("kernels", "recordings", "family", "placed", "anew")
"""Fields of a program that its family shares, or that are not stored."""
UNREADABLE = (ValueError, KeyError, TypeError, IndexError)
"""What a file that is none of ours, or a broken one, raises."""
NUMBERS = {EVENTS.index(kind): len(kind._fields) for kind in (e.Alloc, e.Free, e.Run)}
"""Events that are numbers only, with how many these are; nearly all are."""


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
def load(folder: Path, key: str) -> Stored:
    """The programs stored under `key`; none where there is no file, or none that can be read."""
    try:
        families = json.loads((folder / f"{key}.json").read_bytes())
        return Stored([_Family(family, f"{key}/{number}") for number, family in enumerate(families)])
    except (OSError, *UNREADABLE):
        return Stored([])


class Stored:
    """Programs of one file, each made when it is asked for."""

    def __init__(self, families: Sequence[_Family]) -> None:
        self._places = {variant: (family, n) for family in families for n, variant in enumerate(family.variants)}

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All that are there."""
        return tuple(self._places)

    @collecting(SELDOM)
    def program(self, variant: Variant) -> Program | None:
        """The program of a variant; None where there is none, or none that can be read."""
        if variant not in self._places:
            return None
        family, number = self._places[variant]
        try:
            return family.program(number)
        except UNREADABLE:
            return None


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
    """What the members reach; the table may hold bodies of other requests, too, and those of each are not all made."""
    rows: list[Any] = [["", [], []]] * max(len(member.recordings) for member in members)
    for member in members:
        for place in _reached(member.recordings.__getitem__, member.course):
            recording = member.recordings[place]
            rows[place] = [recording.name, recording.own, [*_tokens(recording.events)]]
    models: dict[int, Program] = {}
    for member in members:
        model = models.setdefault(len(member.events), member)
        if member.course != model.course:
            rows[member.course][2:] = model.course, _differences(model.events, member.events)
    most = max(members, key=lambda member: len(member.kernels))
    components = list(dict.fromkeys(component for member in members for component in member.components))
    return {
        "kernels": [_row(KERNELS, kernel) for kernel in most.kernels], "recordings": rows,
        "components": [asdict(component) | {"traits": sorted(component.traits)} for component in components],
        "programs": [_heading(member, components) for member in members],
    }  # fmt: skip


def _differences(model: Sequence[Event], events: Sequence[Event]) -> list[Any]:
    """Where one course has another event than one as long, and which; what one autoencoder does differs in little."""
    pairs = enumerate(zip(model, events, strict=True))
    return [[n, *_row(EVENTS, own)] for n, (known, own) in pairs if known != own or type(known) is not type(own)]


def _reached(body: Callable[[int], Recording], course: int) -> set[int]:
    """Places of the bodies a course calls, itself included."""
    reached, waiting = {course}, [course]
    while waiting:
        called = {event.recording for event in body(waiting.pop()).events if isinstance(event, e.Call)}
        waiting += called - reached
        reached |= called
    return reached


def _row(kinds: Sequence[type], value: Any) -> list[Any]:
    given = value if isinstance(value, tuple) else (getattr(value, f.name) for f in fields(value))
    return [kinds.index(type(value)), *given]


def _heading(member: Program, components: Sequence[Component]) -> dict[str, Any]:
    own = {f.name: getattr(member, f.name) for f in fields(member) if f.name not in TABLES}
    variant = asdict(member.variant) | {"channels_last": sorted(member.variant.channels_last)}
    places = [components.index(component) for component in member.components]
    return own | {"variant": variant, "components": places, "excluded": sorted(member.excluded)}


class _Family:
    """Programs of one table of bodies, as they were stored."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        self._name, self._headings, self._rows = name, data["programs"], data["recordings"]
        self._components = tuple(map(_component, data["components"]))
        self._kernels = tuple(KERNELS[kind](*map(_frozen, given)) for kind, *given in data["kernels"])
        self._blank = Recording(name="", own=(), events=())
        self._table = [self._blank] * len(self._rows)
        self._anew: dict[object, object] = {}
        self.variants = tuple(map(_variant, self._headings))

    def program(self, number: int) -> Program:
        """One of them; bodies it has no use for are left blank, those it shares with others are the same."""
        heading = self._headings[number]
        reached = _reached(self._body, heading["course"])
        made = {
            "variant": self.variants[number], "chain": tuple(heading["chain"]),
            "components": tuple(self._components[place] for place in heading["components"]),
            "excluded": frozenset(heading["excluded"]),
        }  # fmt: skip
        table = tuple(body if n in reached else self._blank for n, body in enumerate(self._table))
        return Program(
            **heading | made, kernels=self._kernels, recordings=table, family=self._name, anew=self._anew
        )  # fmt: skip

    def _body(self, place: int) -> Recording:
        if self._table[place] is self._blank:
            name, own, *written = self._rows[place]
            self._table[place] = Recording(name=name, own=tuple(own), events=tuple(self._events(*written)))
        return self._table[place]

    def _events(self, *written: Any) -> Iterable[Event]:
        if len(written) == 1:
            return _events(*written)
        model, differences = written
        events = [*self._body(model).events]
        for place, kind, *given in differences:
            (events[place],) = _events((kind, *(given if kind in NUMBERS else (given,))))
        return events


def _variant(heading: dict[str, Any]) -> Variant:
    given = heading["variant"]
    settings = tuple(Setting(*setting) for setting in given["settings"])
    return Variant(**given | {"channels_last": frozenset(given["channels_last"]), "settings": settings})


def _tokens(events: Iterable[Event]) -> Iterator[Any]:
    """Events one after the other: their kind, then their numbers, or a list of their fields where these are not all."""
    for event in events:
        kind = EVENTS.index(type(event))
        yield kind
        yield from event if kind in NUMBERS else ([*event],)


def _events(tokens: Iterable[Any]) -> Iterator[Event]:
    """The same as they were; made as plain tuples, which is all that they check."""
    given = iter(tokens)
    for kind in given:
        fields_ = islice(given, NUMBERS[kind]) if kind in NUMBERS else map(_frozen, next(given))
        event: Event = tuple.__new__(EVENTS[kind], fields_)
        yield event


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
