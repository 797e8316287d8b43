"""Expandable segments: switched on and back in a live process, and a plan that has them keeps its promise."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rig
from applied import named, promised, ran, roomy

import planner
from planner.request import Request

sys.path.append(str(rig.PROJECT / "benchmarks"))

from combinations import seen
from combining import Drawn

WANTED = {"height": 512, "width": 512, "images": 2, "steps": 2}


def switched() -> list[bool]:
    """Sent to the virtual GPU: the setting and what memory is asked for under it, before, during and after."""
    import torch

    from planner.techniques.base import Option
    from planner.techniques.expandable_segments import ExpandableSegments, is_on

    def now() -> list[bool]:
        block = torch.empty(30 * 2**20, device="cuda")
        segments = torch.cuda.memory._snapshot()["segments"]
        del block
        return [is_on(), all(segment["is_expandable"] for segment in segments)]

    technique, before = ExpandableSegments(), now()
    undo = technique.apply(None, Option(technique=technique.name))
    during = now()
    undo()
    return [*before, *during, *now()]


def test_the_setting_is_switched_and_put_back(vgpu: rig.Server) -> None:
    assert vgpu.script(switched) == [False, False, True, True, False, False]


def test_less_is_reserved_and_as_much_as_promised(vgpu: rig.Server, tmp_path: Path) -> None:
    device = planner.card("rtx-3070")
    plain = planner.plan("sd15", device=device, cache=tmp_path, budget="8GB", **WANTED)
    plan = planner.plan("sd15", device=device, cache=tmp_path, budget="8GB", use=["expandable_segments"], **WANTED)
    row = seen(vgpu, Drawn(name="", plan=plan))
    assert row.kept, row
    assert abs(plan.promise.reserved / row.reserved - 1) < 0.01
    assert plan.promise.reserved < plain.promise.reserved


CASES = {
    "sd3-medium": Request(height=512, width=512, images=2, steps=2),
    "wan2.1-t2v-1.3b": Request(height=320, width=512, frames=33, steps=2),
}


@pytest.mark.parametrize("model", CASES)
def test_it_is_as_promised_and_taken_back(vgpu: rig.Server, tmp_path: Path, model: str) -> None:
    asked = replace(CASES[model], use=("expandable_segments", "placement=resident"))
    plan = named(model, asked, roomy("rtx-3090"), tmp_path)
    assert plan.option("expandable_segments")
    call = {"height": asked.height, "width": asked.width, "num_inference_steps": asked.steps}
    call |= {"num_frames": asked.frames, "num_images_per_prompt": asked.images}
    seen = ran(vgpu, plan, {name: value for name, value in call.items() if value is not None})
    assert 0.999 * seen["allocated"] <= promised(plan)["whole"] <= 1.01 * seen["allocated"]
    assert abs(plan.promise.reserved / seen["reserved"] - 1) < 0.01
