"""Expandable segments: the allocator maps pages into growing segments, so that next to nothing is lost to fragments."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed
from planner.program import Program, Variant
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo

SETTING = "expandable_segments"
"""As in PYTORCH_ALLOC_CONF, where it holds from the start; switched later it holds for memory not yet reserved."""


@dataclass(frozen=True, slots=True)
class ExpandableSegments:
    """Set for the whole process, on Linux alone.  Exact.

    Other models feel it too, so it is for those who name it, and where nothing else fits (`Study.choice`).
    """

    name: str = SETTING
    scope: Scope = "call"
    needs: str = "to be named, for it changes the allocator of the whole process"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        if self.name not in {name.partition("=")[0] for name in request.use}:
            return ()
        call = f'torch.cuda.memory._set_allocator_settings("{SETTING}:True")'
        return (Option(technique=self.name, calls=(call,)),)

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return variant

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        """The same requests; it is the rehearsal that serves them otherwise."""
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:  # noqa: ARG002
        import torch

        if not torch.cuda.is_available():
            return lambda: None
        before = is_on()
        switch(on=True)
        if not is_on():
            raise ApplyFailed(f"torch has no expandable segments on {sys.platform}; plan without={SETTING}.")
        return lambda: switch(on=before)


def is_on() -> bool:
    """Whether the allocator makes expandable segments now."""
    import torch

    settings: dict[str, Any] = torch.cuda.memory._snapshot()["allocator_settings"]
    return str(settings[SETTING]) == "True"


def switch(*, on: bool) -> None:
    """For segments to come; idle ones of the other kind are given back."""
    import torch

    torch.cuda.empty_cache()
    newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # torch 2.9
    (newer or torch.cuda.memory._set_allocator_settings)(f"{SETTING}:{on}")
