"""Programs are recorded when first asked for, kept on disk, and shared between requests of one pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner import profiles, store
from planner.errors import TraceFailed
from planner.program import Variant
from planner.programs import FromProfile, Programs
from planner.request import Request

SMALL = Request(height=64, width=64, steps=1)


def opened(folder: Path, told: list[str], request: Request = SMALL) -> Programs:
    return Programs(FromProfile(profiles.find("sd15"), None), request, folder, tell=told.append)


def test_other_requests_are_recorded_on_the_same_ghost_and_kept(tmp_path: Path) -> None:
    told: list[str] = []
    programs = opened(tmp_path, told)
    larger = replace(SMALL, height=128)
    small, large = programs.get(Variant()), programs.resized(larger).get(Variant())
    assert programs.resized(larger) is programs.resized(larger)
    assert told == ["recording 64×64", "recording 64×128"]
    programs.keep()

    again = opened(tmp_path, told)
    for programs_again, program in ((again, small), (again.resized(larger), large)):
        read = programs_again.get(Variant())
        assert events(read) == events(program), "bodies that are not reached may be gone"
    assert len(told) == 2


def events(program: object) -> list[object]:
    """The bodies a program reaches, by place."""
    return [program.recordings[n].events for n in sorted(store._reached(program, program.course))]  # type: ignore


def test_a_stored_file_holds_no_bodies_of_other_requests(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    larger = replace(SMALL, height=128)
    told: list[str] = []
    lone = opened(alone, told, larger)
    lone.get(Variant())
    lone.keep()
    programs = opened(both, told)
    programs.get(Variant())
    programs.resized(larger).get(Variant())
    programs.keep()
    (one,) = alone.iterdir()
    assert (both / one.name).stat().st_size < 1.5 * one.stat().st_size


def test_without_a_folder_nothing_is_kept() -> None:
    programs = Programs(FromProfile(profiles.find("sd15"), None), SMALL, None)
    programs.keep()
    with pytest.raises(TraceFailed, match="divisible by 8"):
        programs.resized(replace(SMALL, height=65)).get(Variant())
