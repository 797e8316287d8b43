from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry
from techniques import programs as by_hand

from planner import store
from planner.ghost import Ghost
from planner.profiles import find
from planner.program import Setting, Variant
from planner.programs import FromProfile, Programs
from planner.request import Request
from planner.techniques import DEFAULT
from planner.trace import Tracer


def test_only_what_was_recorded_under_own_techniques_is_kept(tmp_path: Path) -> None:
    source, request = FromProfile(find("sd15"), None), Request(height=512, width=512)
    made = Programs(source, request, tmp_path, DEFAULT)
    for technique in ("micro_batch", "mine"):
        variant = Variant(settings=(Setting(technique, 1, "denoiser"),))
        made._known[variant] = by_hand.program(by_hand.unet(), variant=variant)
    made._fresh = True
    made.keep()
    (file,) = tmp_path.glob("*.json")
    assert [variant.setting("mine") for variant in store.load(tmp_path, file.stem).variants] == [None]


class Imposing(FromProfile):
    """A pipeline that sets diffusers' attention backend for the whole process as it is made, as Kandinsky 5 does."""

    def ghost(self) -> Ghost:
        made = super().ghost()
        Registry.set_active_backend("_native_math")
        return made


def test_a_recording_leaves_the_switches_of_the_process_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """HunyuanVideo was promised 60 % too much in a process that had recorded Kandinsky 5 before."""
    seen: list[str] = []
    trace = Tracer.trace

    def watched(self: Tracer, *asked: Any) -> Any:
        seen.append(str(Registry.get_active_backend()[0]))
        return trace(self, *asked)

    monkeypatch.setattr(Tracer, "trace", watched)
    before, request = Registry.get_active_backend()[0], Request(height=64, width=64, steps=1)
    made = Programs(Imposing(find("sd15"), None), request, None)
    for variant in (Variant(), Variant(sliced=True)):
        made.get(variant)
        assert Registry.get_active_backend()[0] == before
    assert seen[0] == seen[1] == "_native_math"
