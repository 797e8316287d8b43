"""Peaks of allocated and reserved memory, over a whole call and in each component's part of it."""

from __future__ import annotations

import functools
from typing import Any, TypedDict

import torch

from planner.program import METHODS
from planner.verify import dismiss


class Peak(TypedDict):
    """Bytes."""

    allocated: int
    reserved: int


NONE: Peak = {"allocated": 0, "reserved": 0}


def _higher(a: Peak, b: Peak) -> Peak:
    return {"allocated": max(a["allocated"], b["allocated"]), "reserved": max(a["reserved"], b["reserved"])}


class Peaks:
    """Listens to the components of a pipeline from now on.

    A phase lasts until another component is called, as it does in a promise; calls inside a call belong to that.
    """

    def __init__(self, pipe: Any) -> None:
        self._phases: dict[str, Peak] = {}
        self._now, self._top, self._depth = "", NONE, 0
        torch.cuda.reset_peak_memory_stats()
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                self._listen(name, part)

    @property
    def whole(self) -> Peak:
        """Peak since the beginning."""
        self._read()
        return self._top

    @property
    def phases(self) -> dict[str, Peak]:
        """Peak of each phase; what comes before the first is none."""
        self._read()
        return self._phases

    def _listen(self, name: str, part: torch.nn.Module) -> None:
        for method in METHODS:
            if callable(getattr(part, method, None)):
                setattr(part, method, self._heard(f"{name}.{method}", part, getattr(part, method)))
        part.register_forward_pre_hook(lambda *_: self._enter(name, part))
        part.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def _heard(self, name: str, part: torch.nn.Module, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._enter(name, part)
            try:
                return method(*args, **kwargs)
            finally:
                self._leave()

        return call

    def _read(self) -> None:
        now: Peak = {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
        }
        self._top = _higher(self._top, now)
        if self._now:
            self._phases[self._now] = _higher(self._phases.get(self._now, NONE), now)
        torch.cuda.reset_peak_memory_stats()

    def _enter(self, name: str, part: torch.nn.Module) -> None:
        self._depth += 1
        if self._depth == 1 and name != self._now:
            dismiss(part)
            self._read()
            self._now = name

    def _leave(self) -> None:
        self._depth = max(0, self._depth - 1)
