"""Step caches on full-size pipelines: what is held while every block is computed; to leave some out holds no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rig
from rig import Server

import planner
from planner import profiles
from planner.cards import card
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.techniques import DEFAULT

CARD, VRAM = "rtx-3090", 80 * rig.GIB
PROMPT = " ".join(["word"] * 64)
SIZES: dict[str, dict[str, Any]] = {
    "flux1-dev": {"height": 1024, "width": 1024, "steps": 4},
    "wan2.1-t2v-1.3b": {"height": 480, "width": 832, "frames": 17, "steps": 2},
    "cogvideox-2b": {"height": 480, "width": 720, "frames": 17, "steps": 4},
    "qwen-image": {"height": 1024, "width": 1024, "steps": 4},
    "mochi": {"height": 480, "width": 848, "frames": 19, "steps": 5},
    "ltx-video-0.9.0": {"height": 512, "width": 704, "frames": 33, "steps": 5},
    "hunyuanvideo": {"height": 320, "width": 512, "frames": 17, "steps": 5},
    "latte": {"height": 512, "width": 512, "frames": 16, "steps": 4},
}
"""Wan's scheduler solves equations from the third step on, which the virtual GPU cannot."""
FIRST, PYRAMID = "first_block:0.08", "pyramid:2/4/6"
ATTENTION, HALVES, TAYLOR, LITE, MAG = "faster:2", "faster:2/5", "taylorseer:5", "taylorseer_lite:5", "mag:0.06-4"
CASES = (
    *((model, value, "resident") for model in list(SIZES)[:4] for value in (FIRST, PYRAMID)),
    *(("flux1-dev", value, "resident") for value in (ATTENTION, TAYLOR, LITE, MAG)),
    *(("cogvideox-2b", value, "resident") for value in (ATTENTION, HALVES, LITE)),
    *((model, HALVES, "resident") for model in ("mochi", "latte")),
    *(("qwen-image", value, "resident") for value in (TAYLOR, LITE)),
    *(("ltx-video-0.9.0", value, "resident") for value in (ATTENTION, LITE)),
    *(("hunyuanvideo", value, "resident") for value in (ATTENTION, TAYLOR)),
    ("flux1-dev", ATTENTION, "group_leaf_stream"),
    ("flux1-dev", TAYLOR, "group_block_stream"),
    ("flux1-dev", TAYLOR, "group_leaf"),
    ("flux1-dev", MAG, "sequential"),
    ("flux1-dev", MAG, "group_leaf"),
    ("flux1-dev", LITE, "group_leaf_stream"),
    ("flux1-dev", LITE, "model"),
    ("cogvideox-2b", HALVES, "group_leaf"),
    ("ltx-video-0.9.0", LITE, "sequential"),
    ("flux1-dev", FIRST, "group_block_stream"),
    ("flux1-dev", FIRST, "model"),
    ("flux1-dev", PYRAMID, "group_leaf"),
    ("flux1-dev", PYRAMID, "group_leaf_stream"),
    ("wan2.1-t2v-1.3b", FIRST, "sequential"),
)


def cached(model: str, call: dict[str, Any], value: str, placement: str, computing: bool) -> dict[str, Any]:
    """Sent to the virtual GPU: peaks of a call with a cache; `computing` every block, whatever the first one says."""
    import torch
    from inside import arguments, pipelines, smallvalues
    from inside.peaks import Peaks

    from planner.techniques import DEFAULT, Option

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    pipe = pipelines.shipped(model)
    peaks = Peaks(pipe)
    techniques = {technique.name: technique for technique in DEFAULT}
    techniques["step_cache"].apply(pipe, Option(technique="step_cache", value=value))
    for part in pipe.transformer.modules():
        for hook in getattr(getattr(part, "_diffusers_hook", None), "hooks", {}).values():
            if computing and hasattr(hook, "threshold"):
                hook.threshold = -1.0
    techniques["placement"].apply(pipe, Option(technique="placement", value=placement))
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    return {**peaks.whole, "phases": peaks.phases}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


def predicted(model: str, value: str, placement: str, cache: Path) -> dict[str, int]:
    """Allocated peaks by phase and over all."""
    request = Request(
        **SIZES[model], guidance=profiles.find(model).defaults.guidance, fidelity=Fidelity.LOSSY,
        use=(f"step_cache={value}", f"placement={placement}"),
    )  # fmt: skip
    programs = Programs(FromProfile(profiles.find(model), None), request, cache)
    pricer = Pricer(programs, replace(card(CARD), total=VRAM, free=VRAM), request, DEFAULT)
    (root,) = pricer.roots()
    seen = pricer.rehearse(pricer.price(pricer.merged(root, pricer.offered("placement", root))), None)
    programs.keep()
    return {"whole": seen.allocated, **{name: allocated for name, allocated, _ in seen.phases}}


@pytest.mark.parametrize(("model", "value", "placement"), CASES)
def test_what_is_held_is_foreseen(vgpu: Server, cache: Path, model: str, value: str, placement: str) -> None:
    foreseen = predicted(model, value, placement, cache)
    size = SIZES[model]
    call = {"height": size["height"], "width": size["width"], "num_inference_steps": size["steps"], "prompt": PROMPT}
    call |= {"num_frames": size["frames"]} if "frames" in size else {}
    call |= {"guidance_scale": g} if (g := profiles.find(model).defaults.guidance) is not None else {}
    sent = {"model": model, "call": call, "value": value, "placement": placement}
    truth = vgpu.script(cached, sent | {"computing": True}, **rig.card(CARD) | {"vram": VRAM})
    seen = {"whole": truth["allocated"], "transformer": truth["phases"]["transformer"]["allocated"]}
    for phase, peak in seen.items():
        assert 0.995 * peak <= foreseen[phase] <= 1.01 * peak, phase
    if value == FIRST and placement == "resident":
        skipping = vgpu.script(cached, sent | {"computing": False}, **rig.card(CARD) | {"vram": VRAM})
        assert skipping["allocated"] <= 1.0001 * truth["allocated"]


def planned(model: str, call: dict[str, Any], plan: str) -> dict[str, Any]:
    """Sent to the virtual GPU: a plan applied, called with every block computed, and taken back."""
    import torch
    from inside import arguments, pipelines, smallvalues
    from inside.peaks import Peaks

    from planner.plan import Plan
    from planner.snapshot import snapshot

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    pipe = pipelines.shipped(model)
    peaks = Peaks(pipe)
    before, made = snapshot(pipe), Plan.from_json(plan)
    made.apply(pipe)
    for part in pipe.transformer.modules():
        for hook in getattr(getattr(part, "_diffusers_hook", None), "hooks", {}).values():
            if hasattr(hook, "threshold"):
                hook.threshold = -1.0
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    made.revert(pipe)
    return {**peaks.whole, "left": before.difference(snapshot(pipe))[:3]}


@pytest.mark.parametrize("value", [FIRST, PYRAMID, TAYLOR, LITE])
def test_a_plan_that_moves_weights_holds_with_a_cache(vgpu: Server, cache: Path, value: str) -> None:
    size = SIZES["flux1-dev"]
    plan = planner.plan(
        "flux1-dev", device=card("rtx-4090"), cache=cache, fidelity="lossy", host_ram="80GB", **size,
        use=[f"step_cache={value}"], without=["quantization", "layerwise_casting"],
    )  # fmt: skip
    streams = any(option.technique == "streaming" for option in plan.options)
    assert streams == (value in (FIRST, LITE)), "else diffusers' leaves are quickest"
    call = {"height": size["height"], "width": size["width"], "num_inference_steps": size["steps"], "prompt": PROMPT}
    sent = {"model": "flux1-dev", "call": call, "plan": plan.to_json()}
    seen = vgpu.script(planned, sent, **rig.card("rtx-4090"))
    assert seen["left"] == []
    assert 0.995 * seen["allocated"] <= plan.promise.allocated <= 1.02 * seen["allocated"]
