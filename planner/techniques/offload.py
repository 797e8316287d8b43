"""Offload: single components by diffusers' group offload, while others stay on the card or are streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner import host
from planner.device import Device
from planner.errors import ApplyFailed
from planner.events import Call, Enter
from planner.group_hooks import Grouping
from planner.group_offload import group_offload_one, groupable
from planner.program import Component, Program, Variant
from planner.request import Request
from planner.streaming import streamable
from planner.techniques import group
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import default_device, modules

WORTH = 0.1
"""Part of all weights below which a component that works is not worth choices of its own, each a program to write."""
IDLE = 0.01
"""The same of one that nothing calls, which costs no time wherever it waits."""
UNSTREAMED = ("group_block_stream", "group_leaf_stream", "group_leaf")
"""For what cannot be streamed, the leanest last."""


@dataclass(frozen=True, slots=True)
class Offload:
    """What cannot be streamed, what nothing calls, or what waits on disk travels by diffusers' groups.  Exact."""

    device: str = ""
    """Where the pipeline computes; empty: cuda where there is one, else cpu."""
    folder: str = ""
    """Where files of weights go that wait on disk; empty: the user's cache."""
    room: int | None = None
    """Bytes that these files may take; None: no limit is known."""
    sparing: bool = False
    """Whether weights may wait on disk."""
    name: str = "offload"
    scope: Scope = "component"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        whole = sum(sum(component.weights) for component in program.components)
        left = self.room
        made: list[Option] = []
        for component in (c for c in program.components if sum(c.weights) >= IDLE * whole):
            large = sum(component.weights) >= WORTH * whole
            made += self._options(program, component, self._groupings(program, component, request, large=large))
            if self.sparing and large and (left is None or sum(component.weights) <= left):
                left = None if left is None else left - sum(component.weights)
                made += self._options(program, component, group.ON_DISK)
        return tuple(made)

    def housed(self, disk: int | None, *, here: bool) -> Offload:
        """The same with so many bytes of disk; where none are named and it is `here`, what the folder has free."""
        free = host.free_disk(Path(self.folder) if self.folder else group.default_folder()) if here else self.room
        return replace(self, room=free if disk is None else disk)

    def lacking(self, program: Program, options: Sequence[Option]) -> int:
        """Bytes by which what these options write to disk is more than there is room for."""
        filed = (o.component for o in options if o.technique == self.name and group.ALL[str(o.value)].disk)
        written = sum(sum(program.component(name).weights) for name in filed)
        return 0 if self.room is None else max(written - self.room, 0)

    def spared(self) -> Offload:
        """The same with what needs next to no host memory on offer."""
        return replace(self, sparing=True)

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return variant

    def rewrite(self, program: Program, option: Option) -> Program:
        return group_offload_one(program, group.ALL[str(option.value)], option.component)

    def apply(self, pipe: Any, option: Option) -> Undo:
        whole = modules(pipe)
        if option.component not in whole:
            raise ApplyFailed(
                f"The plan offloads {option.component!r}, which is none of this pipeline's {len(whole)} components; "
                "plan this pipeline."
            )
        module, device = whole[option.component], self.device or default_device()
        setting = str(option.value)
        if group.ALL[setting].disk:
            return group.one_onto_disk(module, setting, self.folder or group.default_folder(), device=device)
        return group.offload_one(module, group.ALL[setting], device)

    def _groupings(
        self, program: Program, component: Component, request: Request, *, large: bool
    ) -> Mapping[str, Grouping]:
        """How a component may travel whose weights wait in memory: where nothing calls it, in whichever way is leanest.

        Plain diffusers cannot stream, so there every component may go by its groups.
        """
        if not _is_called(program, component.name):
            return {"group_leaf": group.ALL["group_leaf"]}
        if large and (request.plain or not streamable(program, component.name)):
            return {name: group.ALL[name] for name in UNSTREAMED}
        return {}

    def _options(self, program: Program, component: Component, groupings: Mapping[str, Grouping]) -> Iterator[Option]:
        if {"quantized", "travels"} & component.traits:
            return
        for setting, grouping in groupings.items():
            if groupable(program, component.name, grouping):
                calls = group.calls_for_one(component.name, setting)
                yield Option(technique=self.name, value=setting, component=component.name, calls=calls)


def _is_called(program: Program, name: str) -> bool:
    return any(
        isinstance(event, (Call, Enter)) and event.module.partition(".")[0] == name for event in program.landmarks
    )
