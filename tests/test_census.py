"""The census accounts for every byte of a peak, and the timeline is as high as the phases are."""

from __future__ import annotations

import pytest

from planner import cards, profiles
from planner.census import Holding, census, timeline
from planner.cost import Cost
from planner.offload import resident, sequential_offload
from planner.program import Program, Variant
from planner.programs import FromProfile, Programs
from planner.request import Request

CARD = cards.card("rtx-3070")


@pytest.fixture(scope="module")
def recorded() -> Program:
    return Programs(FromProfile(profiles.find("sd15"), None), Request(height=256, width=256, steps=3), None).get(
        Variant()
    )


@pytest.fixture(params=["bare", "resident", "streamed"])
def program(request: pytest.FixtureRequest, recorded: Program) -> Program:
    return {"bare": lambda p: p, "resident": resident, "streamed": sequential_offload}[request.param](recorded)


def test_holdings_add_up_to_each_phase_s_peak(program: Program) -> None:
    cost = Cost(CARD)
    phases = {phase.name: phase.peak for phase in cost.phases(program)}
    counts = {count.phase: count for count in census(program, cost)}
    assert counts.keys() == phases.keys()
    for name, count in counts.items():
        assert count.peak == phases[name].total
        assert sum(holding.bytes for holding in count.holdings) == count.peak
        weights = sum(holding.bytes for holding in count.holdings if holding.kind == "weights")
        assert weights == phases[name].weights


def test_holders_are_named_by_where_they_were_made(recorded: Program) -> None:
    unet = next(count for count in census(resident(recorded), Cost(CARD)) if count.phase == "unet")
    assert unet.at.startswith("unet.")
    largest = next(holding for holding in unet.holdings if holding.kind == "activations")
    assert largest.component == "unet"
    assert largest.block.startswith(("up_blocks", "down_blocks", "mid_block", "conv"))
    assert {holding.component for holding in unet.holdings if holding.kind == "weights"} == {
        "text_encoder", "unet", "vae",
    }  # fmt: skip
    assert {h.op for h in unet.holdings} & {"conv", "matmul", "attention", "silu", "cat", "add", "native_group_norm"}


def test_the_timeline_is_as_high_and_as_long_as_the_phases(program: Program) -> None:
    cost = Cost(CARD)
    phases = {phase.name: phase for phase in cost.phases(program)}
    for stretch in timeline(program, cost):
        phase = phases[stretch.phase]
        assert stretch.seconds == pytest.approx(phase.seconds, rel=1e-6)
        assert max(sum(moment[1:]) for moment in stretch.moments) == phase.peak.total
        assert len(stretch.moments) < 400


def test_equal_places_are_counted_together(recorded: Program) -> None:
    for count in census(recorded, Cost(CARD)):
        places = [holding[:4] for holding in count.holdings]
        assert len(places) == len(set(places))
        assert all(isinstance(holding, Holding) and holding.tensors >= 1 for holding in count.holdings)
