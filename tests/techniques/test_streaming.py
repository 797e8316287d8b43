"""Streamed components compute the same, leave no trace, and hold on the card what the program says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.errors import ApplyFailed, BadRequest
from planner.snapshot import snapshot
from planner.streamable import units_of
from planner.techniques.base import Option
from planner.techniques.mover import Cargo, page_locked
from planner.techniques.placement import Placement
from planner.techniques.streaming import Streaming, move_units, parsed

from . import tiny

STREAMING = Streaming(device="cpu")


def denoiser(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def option(pipe: Any, component: str, share: float, until: str = "") -> Option:
    units = len(units_of(getattr(pipe, component)))
    value = f"{round(share * units)}/{units}" + (f"-until-{until}" if until else "")
    return Option(technique="streaming", component=component, value=value)


def every(pipe: Any) -> list[Option]:
    name = denoiser(pipe)
    shares = [option(pipe, name, share, until) for share in (0.4, 1.0) for until in ("", "vae")]
    return [*shares, option(pipe, name, 0, "vae"), option(pipe, "text_encoder", 1)]


def test_exact_during_and_after(pipe: Any) -> None:
    before, output = snapshot(pipe), tiny.run(pipe)
    for chosen in every(pipe):
        undo = STREAMING.apply(pipe, chosen)
        settled = Placement(device="cpu").apply(pipe, Option(technique="placement", value="resident", neutral=True))
        for _ in range(3):
            assert torch.equal(tiny.run(pipe), output)
        settled()
        undo()
        assert before.difference(snapshot(pipe)) == ()
        assert torch.equal(tiny.run(pipe), output)


def test_together(flux: Any) -> None:
    before, output = snapshot(flux), tiny.run(flux)
    chosen = (
        option(flux, "text_encoder", 1),
        option(flux, "text_encoder_2", 0, "transformer"),
        option(flux, "transformer", 0.5, "vae"),
    )
    undos = [STREAMING.apply(flux, one) for one in chosen]
    undos.append(Placement(device="cpu").apply(flux, Option(technique="placement", value="resident", neutral=True)))
    assert torch.equal(tiny.run(flux), output)
    for undo in reversed(undos):
        undo()
    assert before.difference(snapshot(flux)) == ()


def test_at_most_two_units_travel_at_once(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the second pass fetches each unit once: what follows what is known then."""
    here: set[int] = set()
    most, fetched = 0, 0
    fetch, leave = Cargo.fetch, Cargo.leave

    def counted(cargo: Cargo) -> None:
        nonlocal most, fetched
        fetch(cargo)
        here.add(id(cargo))
        most, fetched = max(most, len(here)), fetched + 1

    def gone(cargo: Cargo) -> None:
        leave(cargo)
        here.discard(id(cargo))

    monkeypatch.setattr(Cargo, "fetch", counted)
    monkeypatch.setattr(Cargo, "leave", gone)
    chosen = option(flux, "transformer", 1)
    count, of, _ = parsed(chosen)
    assert count == of > 2
    STREAMING.apply(flux, chosen)
    tiny.run(flux)
    assert (most, fetched) == (2, count * 2)
    assert not here


def test_a_failing_pass_leaves_its_weights_at_home(flux: Any) -> None:
    undo = move_units(flux.transformer, 2, device="cpu")
    with pytest.raises(TypeError):
        flux.transformer(hidden_states="nothing")
    undo()
    assert all(parameter.device.type == "cpu" for parameter in flux.transformer.parameters())


def test_refuses_what_it_was_not_planned_for(flux: Any) -> None:
    with pytest.raises(ApplyFailed, match="99 units"):
        STREAMING.apply(flux, Option(technique="streaming", component="transformer", value="1/99"))
    with pytest.raises(ApplyFailed, match="'unet'"):
        STREAMING.apply(flux, Option(technique="streaming", component="unet", value="1/2"))
    with pytest.raises(BadRequest, match="12/57"):
        STREAMING.apply(flux, Option(technique="streaming", component="transformer", value="some"))


def test_a_failure_half_way_leaves_no_trace(flux: Any) -> None:
    """The component's own hook is in the way, which shows only when its weights have moved already."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(flux.vae, ModelHook())
    before = snapshot(flux)
    with pytest.raises(ApplyFailed, match="remove_all_hooks"):
        move_units(flux.transformer, 2, device="cpu", until=flux.vae)
    assert before.difference(snapshot(flux)) == ()


def test_weights_are_put_back_when_the_card_is_too_small_for_those_that_stay(
    flux: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, device: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("planner.techniques.streaming.moved", full)
    before, output = snapshot(flux), tiny.run(flux)
    with pytest.raises(torch.OutOfMemoryError):
        move_units(flux.transformer, 2, device="cpu")
    assert before.difference(snapshot(flux)) == ()
    assert torch.equal(tiny.run(flux), output)


def test_memory_that_cannot_be_locked_serves_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = SimpleNamespace(success=0)
    refusing = SimpleNamespace(cudaError=errors, cudaHostRegister=lambda address, size, flags: 1)
    monkeypatch.setattr("planner.techniques.mover._runtime", lambda: refusing)
    block, locked = page_locked(1024, torch.device("cuda"))
    assert (block.numel(), locked) == (1024, False)
