"""Step caches on full-size pipelines: what is held while every block is computed; to leave some out holds no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from applied import allocated, plan_of, promised, ran, roomy
from rig import Server

import planner
from planner import profiles
from planner.cards import card
from planner.plan import Plan
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.techniques import DEFAULT

CARD = "rtx-3090"
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
    *(("flux1-dev", value, "streaming") for value in (FIRST, PYRAMID, ATTENTION, TAYLOR, LITE, MAG)),
    *(("wan2.1-t2v-1.3b", value, "streaming") for value in (FIRST, PYRAMID, LITE)),
    *(("cogvideox-2b", value, "streaming") for value in (HALVES, LITE)),
    ("ltx-video-0.9.0", ATTENTION, "streaming"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


def planned(model: str, value: str, placement: str, cache: Path) -> Plan:
    """The plan of a cache and a place for the weights; `streaming`: half of the denoiser's units travel."""
    streams = placement == "streaming"
    places = () if streams else (f"placement={placement}",)
    request = Request(
        **SIZES[model], guidance=profiles.find(model).defaults.guidance, fidelity=Fidelity.LOSSY,
        use=(f"step_cache={value}", *places),
    )  # fmt: skip
    device = roomy(CARD)
    programs = Programs(FromProfile(profiles.find(model), None), request, cache)
    pricer = Pricer(programs, device, request, DEFAULT)
    (root,) = pricer.roots()
    if streams:
        offered = [o for o in pricer.offered("streaming", root) if o.component == "transformer"]
        root = pricer.price(pricer.merged(root, (offered[len(offered) // 2],)))
    settled = pricer.price(pricer.merged(root, pricer.offered("placement", root)))
    programs.keep()
    return plan_of(model, pricer, settled, request, device)


def called(model: str) -> dict[str, Any]:
    """What the pipeline is called with."""
    size = SIZES[model]
    call = {"height": size["height"], "width": size["width"], "num_inference_steps": size["steps"], "prompt": PROMPT}
    call |= {"num_frames": size["frames"]} if "frames" in size else {}
    return call | ({"guidance_scale": g} if (g := profiles.find(model).defaults.guidance) is not None else {})


@pytest.mark.parametrize(("model", "value", "placement"), CASES)
def test_what_is_held_is_foreseen_and_taken_back(
    vgpu: Server, cache: Path, model: str, value: str, placement: str
) -> None:
    plan = planned(model, value, placement, cache)
    foreseen, truth = promised(plan), allocated(ran(vgpu, plan, called(model), computing=True))
    for phase in ("whole", "transformer"):
        assert 0.995 * truth[phase] <= foreseen[phase] <= 1.01 * truth[phase], phase
    if value == FIRST and placement in ("resident", "streaming"):
        skipping = allocated(ran(vgpu, plan, called(model)))
        assert skipping["whole"] <= 1.0001 * truth["whole"]


@pytest.mark.parametrize("value", [FIRST, PYRAMID, TAYLOR, LITE, MAG])
def test_a_plan_that_moves_weights_holds_with_a_cache(vgpu: Server, cache: Path, value: str) -> None:
    plan = planner.plan(
        "flux1-dev", device=card("rtx-4090"), cache=cache, fidelity="lossy", host_ram="80GB", **SIZES["flux1-dev"],
        use=[f"step_cache={value.partition('-')[0]}"], without=["quantization", "layerwise_casting"],
    )  # fmt: skip
    assert plan.option("streaming"), "the denoiser or, where that is quicker, the text encoder travels"
    seen = ran(vgpu, plan, called("flux1-dev"), computing=True)
    assert 0.995 * seen["allocated"] <= plan.promise.allocated <= 1.02 * seen["allocated"]
