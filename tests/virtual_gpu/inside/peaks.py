"""Peaks of allocated and reserved memory, over a whole call and in each component's part of it."""

from __future__ import annotations

import functools
from typing import Any, TypedDict

import torch


class Peak(TypedDict):
    """Bytes."""

    allocated: int
    reserved: int


NONE: Peak = {"allocated": 0, "reserved": 0}


def _higher(a: Peak, b: Peak) -> Peak:
    return {"allocated": max(a["allocated"], b["allocated"]), "reserved": max(a["reserved"], b["reserved"])}


class Peaks:
    """Listens to the components of a pipeline from now on; nested component calls belong to the outermost."""

    def __init__(self, pipe: Any) -> None:
        self.phases: dict[str, Peak] = {}
        self._top, self._depth = NONE, 0
        torch.cuda.reset_peak_memory_stats()
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                self._listen(name, part)

    @property
    def whole(self) -> Peak:
        """Peak since the beginning."""
        self._read()
        return self._top

    def _listen(self, name: str, part: torch.nn.Module) -> None:
        for method in ("encode", "decode"):
            if callable(getattr(part, method, None)):
                setattr(part, method, self._heard(f"{name}.{method}", getattr(part, method)))
        part.register_forward_pre_hook(lambda *_: self._enter())
        part.register_forward_hook(lambda *_: self._leave(name), always_call=True)

    def _heard(self, name: str, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._enter()
            try:
                return method(*args, **kwargs)
            finally:
                self._leave(name)

        return call

    def _read(self) -> Peak:
        now: Peak = {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
        }
        self._top = _higher(self._top, now)
        torch.cuda.reset_peak_memory_stats()
        return now

    def _enter(self) -> None:
        if self._depth == 0:
            self._read()
        self._depth += 1

    def _leave(self, name: str) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self.phases[name] = _higher(self.phases.get(name, NONE), self._read())
