"""Cost against a reading of every event in turn, and against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import CUBLAS, MiB, body, course, programs, read
from techniques.programs import device

from planner.cost import Cost, Peak, Phase, rounded, scratch, temporaries
from planner.events import Alloc, Call, Cast, Drop, Free, Load, Run  # fmt: skip
from planner.kernels import Attention, Conv, Matmul, Plain  # fmt: skip
from planner.offload import model_offload, resident, sequential_offload
from planner.pace import GRAPH_SECONDS, Pace
from planner.program import PLACED, Component, Program, Variant  # fmt: skip

Placement = Callable[[Program], Program]
PLACEMENTS: tuple[Placement, ...] = (resident, model_offload, sequential_offload)


@settings(max_examples=300, deadline=None)
@given(programs(), st.sampled_from(PLACEMENTS), st.sampled_from([(7, 5), (8, 6), (9, 0)]))
def test_equals_a_reading_event_by_event(program: Program, placement: Placement, capability: tuple[int, int]) -> None:
    placed = placement(program)
    card = device(capability)
    phases = Cost(card).phases(placed)
    reading = read(placed, card, held=33_554_432 if capability[0] >= 9 else CUBLAS)
    assert [phase.name for phase in phases] == list(reading.moments)
    for phase in phases:
        moments = reading.moments[phase.name]
        highest = max(map(sum, moments))
        assert phase.peak.total == highest
        parts = (phase.peak.weights, phase.peak.activations, phase.peak.scratch)
        assert parts in [moment for moment in moments if sum(moment) == highest]
        if phase.name != "start":
            once = GRAPH_SECONDS[program.tracing] if phase.name == "unet" else 0.0
            assert phase.seconds == pytest.approx(reading.seconds[phase.name] + once)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(programs(), st.sampled_from(PLACEMENTS), st.integers(1, 2)), min_size=1, max_size=3))
def test_what_was_priced_before_changes_nothing(given_programs: list[tuple[Program, Placement, int]]) -> None:
    """One instance prices many programs: of other families, and of one family with other courses."""
    placed = [
        placement(replace(program, family=str(index), variant=Variant(splits=splits)))
        for index, (program, placement, splits) in enumerate(given_programs)
    ]
    placed += [
        other(replace(placed[0], family="0", recordings=given_programs[0][0].recordings)) for other in PLACEMENTS
    ]
    shared = Cost(device())
    for program in (*placed, *placed):
        assert shared.phases(program) == Cost(device()).phases(program)


def test_bodies_of_two_families_are_kept_apart() -> None:
    shared = Cost(device())
    for family, size in (("small", MiB), ("large", 9 * MiB), ("small", MiB)):
        program = course(Call(0, "unet", ()), bodies=(body(Alloc(0, size), Free(0)),), family=family)
        assert shared.phases(program)[0].peak.activations == CUBLAS + size


def test_a_course_that_parts_from_another_is_walked_on_from_there() -> None:
    inner = body(Alloc(0, 3 * MiB), Free(0))
    unet, vae = Call(0, "unet", ()), Call(0, "vae.decode", ())
    common = (Alloc(0, 2 * MiB), unet, unet, Alloc(1, 7 * MiB), vae)
    shared = Cost(device())
    for rest in ((Free(1), vae), (vae, Free(1)), (Free(1), unet), ()):
        program = course(*common, *rest, bodies=(inner,))
        assert shared.phases(program) == Cost(device()).phases(program)


def test_a_peak_is_the_highest_moment_of_a_phase_in_whole_grains() -> None:
    inner = body(Alloc(0, 1000), Alloc(1, 3 * MiB), Free(1))
    program = course(
        Alloc(0, 10),
        Call(0, "unet", ((0, 1),)),
        Alloc(2, MiB),
        Free(0),
        Call(0, "vae.decode", ((0, 3),)),
        bodies=(inner,),
    )
    assert Cost(device()).phases(program) == (
        Phase(name="start", peak=Peak(activations=CUBLAS + 512), seconds=0.0),
        Phase(name="unet", peak=Peak(activations=CUBLAS + 512 + 1024 + 3 * MiB), seconds=0.0),
        Phase(name="vae.decode", peak=Peak(activations=CUBLAS + 1024 + MiB + 1024 + 3 * MiB), seconds=0.0),
    )


def test_scratch_is_held_only_while_its_kernel_runs() -> None:
    wide = Plain("sort", 0, 0, scratch=5 * MiB)
    program = course(Alloc(0, MiB), Run(0), Alloc(1, 2 * MiB), kernels=(wide,))
    (phase,) = Cost(device()).phases(program)
    assert phase.peak == Peak(activations=CUBLAS + MiB, scratch=5 * MiB)


def test_weights_are_counted_tensor_by_tensor_and_apart() -> None:
    program = course(Load("unet", (1, 511, 513)), Alloc(0, 512))
    assert Cost(device()).phases(program)[0].peak == Peak(weights=512 + 512 + 1024, activations=CUBLAS + 512)


def test_a_cast_exchanges_the_weights_of_a_component() -> None:
    program = course(
        Load("vae", (MiB, MiB)), Cast("vae", (2 * MiB, 2 * MiB)), Drop("vae", copied=False), Load("unet", (512,))
    )
    assert Cost(device()).phases(program)[0].peak.weights == 4 * MiB


def test_the_large_workspace_of_newer_cards_is_there_from_the_start() -> None:
    program = course(Alloc(0, 512))
    totals = {c: Cost(device(c)).phases(program)[0].peak.total for c in [(7, 5), (8, 9), (9, 0), (12, 0)]}
    assert totals == {(7, 5): CUBLAS + 512, (8, 9): CUBLAS + 512, (9, 0): 32 * MiB + 512, (12, 0): 32 * MiB + 512}


def test_seconds_add_up_over_calls_and_splits() -> None:
    card = device()
    slow = Matmul("float16", 10**14, 0)
    once = Pace(card).issue(slow) + Pace(card).kernel(slow)
    assert once > 1.0
    one = body(Run(0))
    calls = tuple(Call(0, "unet", ()) for _ in range(5))
    program = course(*calls, bodies=(one,), kernels=(slow,))
    assert Cost(card).phases(program)[0].seconds == pytest.approx(5 * once)
    split = replace(program, variant=Variant(splits=3))
    assert Cost(card).phases(split)[0].seconds == pytest.approx(15 * once)


def test_only_the_denoiser_runs_from_a_graph() -> None:
    tiny = Plain("add", 0, 0)
    unet = Component(name="unet", kind="UNet", dtype="float16", weights=(), traits=frozenset({"denoiser"}))
    calls = Call(0, "unet", ()), Call(0, "vae.decode", ())
    plain = course(*calls, bodies=(body(Run(0)),), kernels=(tiny,), components=(unet,), tracing="none")
    eager = Cost(device()).phases(plain)

    def alone(tracing: str) -> float:
        return Pace(device(), tracing).issue(tiny) + Pace(device(), tracing).kernel(tiny)

    traced = Cost(device()).phases(replace(plain, tracing="compile"))
    entered = GRAPH_SECONDS["compile"] + Pace(device(), "compile").entry()
    assert traced[0].seconds == pytest.approx(entered + alone("compile"))
    assert eager[0].seconds == pytest.approx(alone("none"))
    assert traced[1].seconds == eager[1].seconds


def test_what_the_pipeline_does_between_calls_is_not_compiled() -> None:
    tiny = Plain("add", 0, 0)
    unet = Component(name="unet", kind="UNet", dtype="float16", weights=(), traits=frozenset({"denoiser"}))
    alone = course(Call(0, "unet", ()), bodies=(body(),), kernels=(tiny,), components=(unet,), tracing="compile")
    followed = course(
        Call(0, "unet", ()), Run(0), bodies=(body(),), kernels=(tiny,), components=(unet,), tracing="compile"
    )
    (before,), (after,) = (Cost(device()).phases(program) for program in (alone, followed))
    pace = Pace(device())
    assert after.seconds - before.seconds == pytest.approx(pace.issue(tiny) + pace.kernel(tiny))


def test_compiling_is_spread_over_the_calls_to_come_and_happens_once_however_they_are_split() -> None:
    unet = Component(name="unet", kind="UNet", dtype="float16", weights=(), traits=frozenset({"denoiser"}))
    program = course(
        Call(0, "unet", ()), Call(0, "unet", ()), bodies=(body(),), components=(unet,), tracing="compile",
        variant=Variant(splits=3),
    )  # fmt: skip
    for calls in (1, 10):
        entered = 2 * 3 * Pace(device(), "compile").entry()
        assert Cost(device(), calls).phases(program)[0].seconds == pytest.approx(
            GRAPH_SECONDS["compile"] / calls + entered
        )


@pytest.mark.parametrize(("size", "taken"), [(0, 0), (1, 512), (512, 512), (513, 1024), (MiB + 1, MiB + 512)])
def test_requests_are_rounded_up_to_grains(size: int, taken: int) -> None:
    assert rounded(size) == taken


def test_each_temporary_is_rounded_on_its_own() -> None:
    kernel = Attention("float16", 1, 1, 4, 4, 8, 8, backend="sliced")
    assert temporaries(kernel, device()) == (32, 32, 64)
    assert scratch(kernel, device()) == 3 * 512
    assert temporaries(Matmul("float16", 1, 1), device()) == ()
    assert scratch(Conv("float16", (1, 3, 8, 8), (8, 3, 3, 3), (1, 8, 8, 8), (1, 1)), device()) == 0


def test_bodies_of_a_programs_own_are_not_taken_for_anothers_of_the_same_number() -> None:
    """Courses that differ in nothing but what their own bodies do; priced in either order each costs the same."""

    def placed(size: int) -> Program:
        own = body(Alloc(0, size), Free(0))
        return course(Call(PLACED, "unet", ()), Call(PLACED, "vae.decode", ()), placed=(own,), family="one")

    small, large = placed(MiB), placed(2 * MiB)
    for order in ((small, large), (large, small)):
        cost = Cost(device((8, 6)))
        peaks = {id(program): [phase.peak.total for phase in cost.phases(program)] for program in order}
        assert [b - a for a, b in zip(peaks[id(small)], peaks[id(large)], strict=True)] == [MiB, MiB]
