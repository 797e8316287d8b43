"""Single components by groups of their own, others streamed or on the card: promised against seen, and taken back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from applied import allocated, plan_of, promised, ran, roomy
from rig import Server

from planner import profiles
from planner.plan import Plan
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Request
from planner.techniques import DEFAULT
from planner.techniques.base import Option
from planner.techniques.offload import Offload

CARD = "rtx-3090"


@dataclass(frozen=True, slots=True)
class Case:
    """What travels, by technique, component and value."""

    model: str
    size: dict[str, Any]
    ways: tuple[tuple[str, str, str], ...]
    plain: bool = False

    def __str__(self) -> str:
        return "-".join((self.model, *(value for _, _, value in self.ways)))


HALVED = {"height": 512, "width": 512}
SCRAP = {"height": 256, "width": 256, "frames": 9}
CLIP = {"height": 480, "width": 832, "frames": 17}
HALF = "half"
"""Of a streamed component's units."""
FILES = "group_leaf_disk"
AHEAD = "group_leaf_stream"
CASES = (
    Case("kolors", HALVED, (("streaming", "unet", HALF), ("offload", "text_encoder", AHEAD))),
    Case("kolors", HALVED, (("offload", "text_encoder", "group_leaf"),)),
    Case("audioldm2", {}, (("offload", "text_encoder", AHEAD), ("offload", "language_model", FILES))),
    Case("animatediff-sd15", HALVED, (("streaming", "unet", HALF), ("offload", "motion_adapter", "group_leaf"))),
    Case("sd15", HALVED, (("streaming", "unet", HALF), ("offload", "text_encoder", FILES))),
    Case("flux1-dev", HALVED, (("streaming", "transformer", HALF), ("offload", "text_encoder_2", FILES))),
    Case("flux1-dev", HALVED, (("offload", "text_encoder_2", "group_block_stream_disk"),)),
    Case(
        "wan2.1-t2v-1.3b", CLIP,
        (("streaming", "transformer", HALF), ("offload", "text_encoder", "group_leaf_stream_disk")),
    ),
    Case("ltx-2", SCRAP, (("streaming", "transformer", HALF), ("offload", "text_encoder", AHEAD))),
    Case("sdxl", HALVED, (("offload", "unet", "group_block_stream"), ("offload", "text_encoder_2", AHEAD)), plain=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


def way(option: Option) -> tuple[str, str, str]:
    """As a case names it: of all shares from a half on the first."""
    value = str(option.value)
    if option.technique == "streaming" and (share := re.fullmatch(r"(\d+)/(\d+)", value)):
        value = HALF if 2 * int(share[1]) >= int(share[2]) else value
    return option.technique, option.component, value


def planned(case: Case, cache: Path) -> Plan:
    """Those ways for those components, all else on the card."""
    usual = profiles.find(case.model).defaults
    size = {name: getattr(usual, name) for name in ("height", "width", "frames")} | case.size
    asked, device = Request(**size, steps=2, plain=case.plain, extra=tuple(usual.extra)), roomy(CARD)
    techniques = tuple(Offload(sparing=True) if t.name == "offload" else t for t in DEFAULT)
    programs = Programs(FromProfile(profiles.find(case.model), None), asked, cache)
    pricer = Pricer(programs, device, asked, techniques)
    bare = pricer.price(())
    offered = {way(option): option for t in techniques for option in reversed(pricer.offered(t.name, bare))}
    chosen = pricer.price(pricer.merged(bare, tuple(offered[wanted] for wanted in case.ways)))
    settled = pricer.price(pricer.merged(chosen, pricer.offered("placement", chosen)))
    plan = plan_of(case.model, pricer, settled, asked, device)
    programs.keep()
    return plan


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_takes_what_is_promised_and_is_taken_back(vgpu: Server, cache: Path, case: Case) -> None:
    plan = planned(case, cache)
    call = {"num_inference_steps": 2, "num_frames": plan.request.frames, **dict(plan.request.extra)}
    call |= {"height": plan.request.height, "width": plan.request.width}
    seen = ran(vgpu, plan, {name: value for name, value in call.items() if value is not None})
    foreseen, truth = promised(plan), allocated(seen)
    for phase in truth:
        assert 0.998 * truth[phase] <= foreseen[phase] <= 1.01 * truth[phase], phase
    assert seen["pinned"] <= 1.001 * plan.promise.host
