"""A component offloaded by itself computes the same beside streamed ones, and leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.errors import ApplyFailed
from planner.groupable import stacks_of
from planner.program import Component
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.group import ON_DISK
from planner.techniques.offload import UNSTREAMED, Offload
from planner.techniques.placement import Placement
from planner.techniques.streaming import move_units

from . import programs, tiny

REQUEST = Request()
RESIDENT = Option(technique="placement", value="resident", neutral=True)


def option(component: str, value: str) -> Option:
    return Option(technique="offload", component=component, value=value)


@pytest.mark.parametrize("value", [*UNSTREAMED, *ON_DISK])
def test_exact_during_and_after(pipe: Any, value: str, tmp_path: Path) -> None:
    """The text encoder by groups, the denoiser streamed, all else on the card."""
    before, output = snapshot(pipe), tiny.run(pipe)
    folder = tmp_path / "files"
    undo = Offload(device="cpu", folder=str(folder)).apply(pipe, option("text_encoder", value))
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    stop = move_units(denoiser, 2, device="cpu")
    settled = Placement(device="cpu").apply(pipe, RESIDENT)
    assert bool(list(folder.glob("*"))) == ("disk" in value)
    for _ in range(2):
        assert torch.allclose(tiny.run(pipe), output, atol=1e-4 if "disk" in value else 0)
    for take_back in (settled, stop, undo):
        take_back()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)
    assert not list(folder.glob("*"))


def test_refuses_what_it_was_not_planned_for(flux: Any) -> None:
    before = snapshot(flux)
    with pytest.raises(ApplyFailed, match="'unet', which is none of this pipeline's 4 components"):
        Offload(device="cpu").apply(flux, option("unet", "group_leaf"))
    flux.transformer._supports_group_offloading = False
    with pytest.raises(ValueError, match="does not support group offloading"):
        Offload(device="cpu").apply(flux, option("transformer", "group_leaf"))
    del flux.transformer._supports_group_offloading
    assert before.difference(snapshot(flux)) == ()


def test_groups_of_others_are_still_refused(sd: Any) -> None:
    sd.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(ApplyFailed, match=r"unet \(1 of \d components\) are offloaded"):
        Placement(device="cpu").apply(sd, RESIDENT)


def parts() -> tuple[Component, ...]:
    """Components of a tiny kind that can go by groups."""
    stacks = stacks_of(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    large, small = {"stacks": stacks, "weights": (64, 16)}, {"stacks": stacks, "weights": (8, 1)}
    return (
        programs.text_encoder(**large), programs.unet(**large), programs.vae(**small),
        replace(programs.text_encoder(**large), name="image_encoder"),
    )  # fmt: skip


def test_what_is_offered_where() -> None:
    program = programs.program(*parts(), text_encoder=(), unet=(), vae=())
    device = programs.device()

    def offered(technique: Offload, request: Request = REQUEST) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for each in technique.options(program, device, request):
            found.setdefault(each.component, []).append(str(each.value))
        return found

    leaves = ["group_leaf_stream", "group_leaf"]
    usual = offered(Offload())
    assert usual["image_encoder"] == ["group_leaf"], "nothing calls it"
    assert set(leaves) <= set(usual["text_encoder"]), "it has no units"
    assert "vae" not in usual, "too small for choices of its own"
    spared = offered(Offload(room=100).spared())
    assert any("disk" in value for value in spared["text_encoder"])
    assert not any("disk" in value for value in spared["unet"]), "no room for a second one"
    assert all(o.plain for o in Offload().options(program, device, REQUEST))
    packed = replace(program, components=tuple(replace(c, traits=c.traits | {"quantized"}) for c in program.components))
    assert Offload().options(packed, device, REQUEST) == ()
