"""Pipelines as people have them: on the card, used before, in fp8, beside other things.  Plans hold for them too."""

from __future__ import annotations

from typing import Any

import pytest
import rig
from rig import Server

MIB = 2**20
UNSEEN = 4096
"""Bytes of timesteps and the like, which keep their values while a program is recorded and are no ghosts."""


def configured(state: str, budget: str) -> dict[str, Any]:
    import torch
    from inside import arguments, pipelines, smallvalues

    import planner
    from planner.snapshot import snapshot

    mode = smallvalues.install()
    assert mode is not None
    pipe, call = pipelines.shipped("sd15"), {"height": 512, "width": 512, "num_inference_steps": 2}
    held = []
    if state in ("on the card", "used before"):
        pipe.to("cuda")
    if state == "used before":
        with torch.no_grad():
            pipe(**{**arguments.of(pipe, {}), **call})
    if state == "in fp8":
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float16)
    if state == "beside another":
        held.append(torch.empty(2_000_000_000, dtype=torch.uint8, device="cuda"))
    before, others = snapshot(pipe), torch.cuda.memory_allocated() if held else 0
    plan = planner.auto_configure(pipe, budget=budget, height=512, width=512, steps=2)
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        pipe(**{**arguments.of(pipe, {}), **call})
    peak = torch.cuda.max_memory_allocated() - others
    plan.revert(pipe)
    return {
        "promised": plan.promise.allocated,
        "seen": peak,
        "capacity": plan.capacity,
        "options": [option.technique for option in plan.options if not option.neutral],
        "left": before.difference(snapshot(pipe)),
    }


@pytest.mark.parametrize("state", ["on the host", "on the card", "used before", "in fp8", "beside another"])
def test_it_runs_as_promised_and_comes_back(vgpu: Server, state: str) -> None:
    card = rig.card("rtx-3070")
    answer = vgpu.script(configured, {"state": state, "budget": "2GB"}, **card, context=300 * MIB)
    assert "streaming" in answer["options"]
    assert answer["seen"] <= answer["capacity"]
    assert -UNSEEN <= answer["promised"] - answer["seen"] <= 0.001 * answer["seen"]
    assert answer["left"] == []


def test_what_others_in_the_process_hold_is_not_free(vgpu: Server) -> None:
    card = rig.card("rtx-3070")
    answer = vgpu.script(configured, {"state": "beside another", "budget": "auto"}, **card, context=300 * MIB)
    assert answer["capacity"] <= card["vram"] - 300 * MIB - 2_000_000_000
    assert answer["seen"] <= answer["capacity"]
