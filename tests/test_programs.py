from __future__ import annotations

from pathlib import Path

from techniques import programs as by_hand

from planner import store
from planner.profiles import find
from planner.program import Setting, Variant
from planner.programs import FromProfile, Programs
from planner.request import Request
from planner.techniques import DEFAULT


def test_only_what_was_recorded_under_own_techniques_is_kept(tmp_path: Path) -> None:
    source, request = FromProfile(find("sd15"), None), Request(height=512, width=512)
    made = Programs(source, request, tmp_path, DEFAULT)
    for technique in ("micro_batch", "mine"):
        variant = Variant(settings=(Setting(technique, 1, "denoiser"),))
        made._known[variant] = by_hand.program(by_hand.unet(), variant=variant)
    made._fresh = True
    made.keep()
    (file,) = tmp_path.glob("*.json")
    assert [p.variant.setting("mine") for p in store.load(tmp_path, file.stem)] == [None]
