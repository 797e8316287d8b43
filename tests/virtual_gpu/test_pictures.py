"""Pipelines that work from pictures: what is predicted from a profile is what PyTorch's allocator sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rig
from rig import Server

from planner.cards import card
from planner.request import Request
from planner.study import opened
from planner.techniques import DEFAULT

CARD = "rtx-3090"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15 from an image": ("sd15", {"image": True, "strength": 0.5, "steps": 4}),
    "sd15 under a mask": ("sd15", {"mask": True, "strength": 0.5, "steps": 4}),
    "sd15-inpainting": ("sd15-inpainting", {"steps": 2, "strength": 1.0}),
    "sd15-controlnet": ("sd15-controlnet", {"steps": 2}),
    "sd15 from an image under control": ("sd15", {"image": True, "control": True, "strength": 0.5, "steps": 4}),
    "sd15-t2i-adapter": ("sd15-t2i-adapter", {"steps": 2}),
    "sdxl from an image": ("sdxl", {"image": True, "strength": 0.5, "steps": 4}),
    "sdxl under a mask": ("sdxl", {"mask": True, "strength": 0.5, "steps": 4}),
    "sdxl under control": ("sdxl", {"control": True, "steps": 2}),
    "sd3-medium from an image": ("sd3-medium", {"image": True, "strength": 0.5, "steps": 4}),
    "flux1-dev from an image": ("flux1-dev", {"image": True, "strength": 0.5, "steps": 4}),
    "sd-x4-upscaler": ("sd-x4-upscaler", {"steps": 2}),
    "svd": ("svd", {"steps": 2}),
    "wan2.1-i2v-14b-480p": ("wan2.1-i2v-14b-480p", {"steps": 2, "frames": 33}),
}
"""Model, and what is asked of it at its usual size."""


def foreseen(model: str, asked: dict[str, Any], cache: Path) -> dict[str, int]:
    """Allocated peaks in bytes, of the whole call and by phase, and the call's size."""
    device = replace(card(CARD), total=80 * rig.GIB, free=80 * rig.GIB)
    study = opened(model, Request(**asked), techniques=DEFAULT, cache=cache)
    pricer = study.pricer(device)
    seen = pricer.rehearse(pricer.baseline(), None)
    sides = {"height": study.request.height, "width": study.request.width}
    return {"whole": seen.allocated, **{name: a for name, a, _ in seen.phases}} | {"sides": sides}  # type: ignore[dict-item]


def called(model: str, pictures: list[str], call: dict[str, Any]) -> dict[str, Any]:
    """Sent to the virtual GPU: peaks of the call with every component on the card."""
    import torch
    from inside import arguments, pipelines, smallvalues
    from inside.peaks import Peaks

    mode = smallvalues.install()
    pipe = pipelines.shipped(model, pictures=pictures).to("cuda")
    peaks = Peaks(pipe)
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    seen = {"whole": peaks.whole["allocated"], **{name: peak["allocated"] for name, peak in peaks.phases.items()}}
    mode.__exit__(None, None, None)
    return seen


def measured(vgpu: Server, model: str, asked: dict[str, Any], sides: dict[str, int | None]) -> dict[str, int]:
    names = {"steps": "num_inference_steps", "frames": "num_frames", "strength": "strength"}
    call = {names[name]: value for name, value in asked.items() if name in names}
    call |= {name: side for name, side in sides.items() if side}
    pictures = [name for name in asked if name not in names]
    arguments = {"model": model, "pictures": pictures, "call": call}
    seen: dict[str, int] = vgpu.script(called, arguments, **rig.card(CARD) | {"vram": 80 * rig.GIB})
    return seen


@pytest.mark.parametrize("name", CASES)
def test_a_call_with_pictures_takes_what_is_predicted(vgpu: Server, tmp_path: Path, name: str) -> None:
    model, asked = CASES[name]
    predicted = foreseen(model, asked, tmp_path)
    truth = measured(vgpu, model, asked, predicted.pop("sides"))  # type: ignore[arg-type]
    errors = {phase: predicted[phase] / peak - 1 for phase, peak in truth.items()}
    assert -0.003 <= errors["whole"] <= 0.005, errors
    assert min(errors.values()) >= -0.005, errors  # more is foreseen where casts and copies follow a component's call
