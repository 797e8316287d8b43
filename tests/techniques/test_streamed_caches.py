"""A denoiser with a step cache, streamed: what is passed over stays at home, and the numbers are those without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.events import Call, Drop, Event, Fetch
from planner.program import Program, Setting
from planner.snapshot import snapshot
from planner.streamable import units_of
from planner.techniques.base import Option
from planner.techniques.mover import Cargo
from planner.techniques.streaming import Streaming, move_units, parsed

from . import programs, tiny
from .test_step_cache import CACHE, CASES, MAKERS, STEPS, asked, option, recorded

CALL = {"num_inference_steps": STEPS, "height": 64, "width": 64}


def denoisers(program: Program) -> list[Option]:
    """The least and the most that travels, and all of it in between decodes."""
    offered = Streaming().options(program, programs.device(), asked())
    able = [option for option in offered if option.component == "transformer"]
    return [able[0], able[len(able) // 3], able[-1]]


def computing(pipe: Any) -> None:
    """Every block, whatever the first one says, as it is recorded."""
    for part in pipe.transformer.modules():
        for hook in getattr(vars(part).get("_diffusers_hook"), "hooks", {}).values():
            if type(hook).__name__ == "FBCHeadBlockHook":
                hook.threshold = -1.0


def travels(program: Program, events: tuple[Event, ...], units: set[str]) -> Iterator[tuple[str, str]]:
    for event in events:
        if isinstance(event, Call):
            yield from travels(program, program.body(event.recording), units)
        elif isinstance(event, (Fetch, Drop)) and event.key in units:
            yield type(event).__name__, event.key


def watched(pipe: Any, patch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is fetched and dropped from here on."""
    paths = {id(part): path for path, part in pipe.transformer.named_modules()}
    seen: list[tuple[str, str]] = []
    fetch, leave = Cargo.fetch, Cargo.leave

    def fetched(cargo: Cargo) -> None:
        seen.append(("Fetch", paths[id(cargo.modules[0])]))
        fetch(cargo)

    def left(cargo: Cargo) -> None:
        seen.extend([("Drop", paths[id(cargo.modules[0])])] if cargo.here else [])
        leave(cargo)

    patch.setattr(Cargo, "fetch", fetched)
    patch.setattr(Cargo, "leave", left)
    return seen


@pytest.mark.parametrize("finest", [12, 2], ids=["by layers", "by blocks"])
@pytest.mark.parametrize(("name", "value"), CASES)
def test_weights_travel_as_the_program_says(
    name: str, value: str, finest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit by unit, with what is fetched in vain."""
    monkeypatch.setattr("planner.streamable.FINEST", finest)
    pipe = MAKERS[name](tmp_path)
    plain = tiny.run(pipe, **CALL)
    CACHE.apply(pipe, option(value))
    computing(pipe)
    before, output = snapshot(pipe), tiny.run(pipe, **CALL)
    assert torch.equal(output, plain) == ("first_block" in value)
    ghost = MAKERS[name](tmp_path / "ghost")
    ghost.tokenizer = ghost.tokenizer_2 = tiny.tokenizer(tmp_path / "words")
    program = recorded(ghost, Setting("step_cache", value, "call"), steps=STEPS)
    units = {unit.path for unit in program.component("transformer").units}
    for chosen in denoisers(program):
        with monkeypatch.context() as patch:
            moved = watched(pipe, patch)
            undo = Streaming(device="cpu").apply(pipe, chosen)
            assert torch.equal(tiny.run(pipe, **CALL), output)
            seen = moved.copy()
            undo()
        assert before.difference(snapshot(pipe)) == ()
        if not parsed(chosen)[2]:  # else units that stay while it works leave, too
            streamed = Streaming().rewrite(program, chosen)
            assert seen == list(travels(streamed, streamed.events, units))
    assert torch.equal(tiny.run(pipe, **CALL), output)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_blocks_that_the_first_one_makes_needless_stay_at_home(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.streamable.FINEST", 2)
    pipe = MAKERS[name](tmp_path)
    CACHE.apply(pipe, option("first_block:9"))
    output = tiny.run(pipe, **CALL)
    seen = watched(pipe, monkeypatch)
    undo = move_units(pipe.transformer, len(units_of(pipe.transformer)), device="cpu")
    assert torch.equal(tiny.run(pipe, **CALL), output)
    blocks = [path for what, path in seen if what == "Fetch" and "blocks.1" in path]
    assert len(blocks) <= 3 * len(set(blocks)), "in the first step, or in vain in the second"
    undo()
