"""Rehearsal against the cost model: the same program, once in sums and once in the allocator's blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import CUBLAS, MiB, body, course, programs, read
from techniques.programs import device, text_encoder, unet

from planner import rehearsal as rehearsing
from planner import score
from planner.allocator import Allocator
from planner.cost import Cost
from planner.events import Again, Alloc, Call, Cast, Drop, Empty, Event, Free, Gone, Load, Run
from planner.kernels import Attention, Conv, Matmul, Plain
from planner.offload import model_offload, resident, sequential_offload
from planner.program import Program, Recording, Variant
from planner.rehearsal import NEAR, _loads, _unlucky, rehearse

PRODUCT = Matmul("float16", 1, 1)
WIDE = Conv("float16", (1, 64, 256, 256), (64, 64, 3, 3), (1, 64, 256, 256), (1, 1))
WIDE_SCRATCH = 2 * 64 * 256 * 256 * 2 + 64 * 64 * 9 * 2


def begun(program: Program) -> Program:
    """The program with a product before all else, so that cuBLAS's workspace is there from the start."""
    events = program.recordings[program.course].events
    first = Run(len(program.kernels))
    return replace(program, kernels=(*program.kernels, PRODUCT)).with_course((first, *events))


@settings(max_examples=150, deadline=None)
@given(programs(), st.sampled_from([resident, model_offload, sequential_offload]))
def test_what_is_allocated_is_the_peak_plus_what_blocks_leave_over(
    program: Program, placement: Callable[[Program], Program]
) -> None:
    """A block of the large pool is not split for a rest of 1 MiB or less, and counts whole."""
    placed = begun(placement(program))
    card = device()
    peak = max(phase.peak.total for phase in Cost(card).phases(placed))
    rehearsal = rehearse(placed, card)
    reading = read(placed, card)
    tensors = reading.most + 8  # scratch at the same time: at most 8 pieces; and cuBLAS's
    assert peak <= rehearsal.allocated <= peak + tensors * MiB
    assert rehearsal.allocated <= rehearsal.reserved
    assert not rehearsal.failed


@settings(max_examples=150, deadline=None)
@given(programs(), st.integers(10, 120))
def test_under_a_cap_it_runs_within_it_or_says_where_it_stops(program: Program, mebibytes: int) -> None:
    placed, card = resident(program), device()
    capacity = mebibytes * MiB
    rehearsal = rehearse(placed, card, capacity=capacity)
    roomy = rehearse(placed, card)
    names = [name for name, _, _ in roomy.phases]
    assert rehearsal.reserved <= capacity
    assert [name for name, _, _ in rehearsal.phases] == names[: len(rehearsal.phases)]
    if rehearsal.failed:
        assert rehearsal.failed in names
        assert rehearsal.missing > 0
    else:
        assert rehearse(placed, card, capacity=rehearsal.enough) == rehearsal
    unlucky = _unlucky(tuple(_loads(placed.recordings[placed.course].events)))
    if roomy.reserved + unlucky <= capacity:
        assert rehearsal == roomy


def test_later_calls_of_a_split_find_the_workspace_of_products() -> None:
    """What comes before the first product of a call comes after the last one of the call before."""
    looked_up = Recording("Embedding", (), (Alloc(0, 30 * MiB), Free(0), Run(0)))
    call = replace(course(Call(0, "text_encoder", ())), kernels=(PRODUCT,))
    once = replace(call, recordings=(looked_up, *call.recordings), course=1)
    several = replace(once, variant=replace(once.variant, splits=2)).repeated(2)
    held = [{name: a for name, a, _ in rehearse(p, device()).phases}["text_encoder"] for p in (once, several)]
    assert held == [30 * MiB, 30 * MiB + CUBLAS]


def test_layer_by_layer_the_smallest_body_empties_the_cache() -> None:
    """Passed over, it would leave 40 MiB of which 30 are taken next, so that 40 more have to be reserved."""
    norm = Recording("Norm", (1024,), (Alloc(0, 1024), Free(0), Run(1)))
    around = (Run(0), Alloc(0, 40 * MiB), Free(0), Call(0, "norm", ()), Alloc(1, 30 * MiB), Alloc(2, 40 * MiB))
    net = Recording("Net", (), (*around, Free(1), Free(2)))
    call = replace(course(Call(1, "unet", ())), kernels=(PRODUCT, Plain("mul", 1, 1)))
    program = replace(call, recordings=(norm, net, *call.recordings), course=2)
    small, workspace = 2 * MiB, 20 * MiB
    assert rehearse(sequential_offload(program), device()).reserved == workspace + 70 * MiB + small


def test_hand_made_blocks() -> None:
    """12 MiB take a segment of their own, 3 MiB one of 20; a small tensor takes a segment of 2."""
    program = course(Alloc(0, 12 * MiB), Alloc(1, 3 * MiB), Alloc(2, 1000), Free(0), Alloc(3, 11 * MiB + 1))
    rehearsal = rehearse(program, device())
    assert rehearsal.allocated == 12 * MiB + 3 * MiB + 1024  # the last one gets the whole block of 12
    assert rehearsal.reserved == 12 * MiB + 20 * MiB + 2 * MiB
    assert rehearsal.retries == 0


def test_cublas_takes_its_workspace_with_the_first_product() -> None:
    cold = course(Alloc(0, 1000), kernels=(PRODUCT,))
    warm = course(Alloc(0, 1000), Run(0), Run(0), kernels=(PRODUCT,))
    assert rehearse(cold, device()).allocated == 1024
    assert rehearse(warm, device()).allocated == 1024 + CUBLAS


def test_phases_have_peaks_of_their_own() -> None:
    small, large = body(Alloc(0, 2 * MiB), Free(0)), body(Alloc(0, 12 * MiB), Free(0))
    program = course(Load("unet", (4 * MiB,)), Call(1, "unet", ()), Call(0, "vae.decode", ()), bodies=(small, large))
    assert rehearse(program, device()).phases == (
        ("start", 4 * MiB, 20 * MiB),
        ("unet", 16 * MiB, 20 * MiB),
        ("vae.decode", 6 * MiB, 20 * MiB),
    )


@pytest.mark.parametrize(
    ("capacity", "failed", "missing"),
    [(19, "start", 20), (39, "unet", 40), (69, "vae.decode", 70), (90, "", 0)],
)
def test_too_little_memory_fails_in_the_phase_that_needs_it(capacity: int, failed: str, missing: int) -> None:
    unet, vae = body(Alloc(0, 40 * MiB), Free(0)), body(Alloc(0, 70 * MiB), Free(0))
    program = course(
        Load("unet", (20 * MiB,)),
        Call(0, "unet", ()),
        Call(0, "unet", ()),
        Call(1, "vae.decode", ()),
        bodies=(unet, vae),
    )
    rehearsal = rehearse(program, device(), capacity=capacity * MiB)
    assert (rehearsal.failed, rehearsal.missing) == (failed, missing * MiB)


def test_an_emptied_cache_makes_room_and_counts_as_a_retry() -> None:
    program = course(Alloc(0, 40 * MiB), Free(0), Alloc(1, 50 * MiB))
    assert rehearse(program, device()).reserved == 90 * MiB
    tight = rehearse(program, device(), capacity=60 * MiB)
    assert (tight.failed, tight.reserved, tight.retries) == ("", 50 * MiB, 1)


def test_emptying_as_accelerate_does_leaves_nothing_reserved() -> None:
    program = course(Load("unet", (40 * MiB,)), Drop("unet", copied=True), Empty(), Load("vae", (50 * MiB,)))
    rehearsal = rehearse(program, device())
    assert (rehearsal.reserved, rehearsal.retries) == (50 * MiB, 0)


def test_a_convolution_short_of_workspace_runs_with_less() -> None:
    program = course(Alloc(0, 8 * MiB), Alloc(1, 8 * MiB), Run(0), Alloc(2, MiB), kernels=(WIDE,))
    roomy = rehearse(program, device())
    grains = -(-WIDE_SCRATCH // 512) * 512
    assert roomy.allocated == 16 * MiB + grains
    tight = rehearse(program, device(), capacity=24 * MiB)
    assert not tight.failed
    assert tight.allocated == 17 * MiB
    assert tight.retries == 1


def test_other_scratch_cannot_do_with_less() -> None:
    program = course(Alloc(0, 8 * MiB), Run(0), kernels=(Plain("sort", 0, 0, scratch=30 * MiB),))
    assert rehearse(program, device(), capacity=40 * MiB).failed == "start"
    assert not rehearse(program, device(), capacity=50 * MiB).failed


@pytest.mark.parametrize(("capability", "order"), [((7, 5), (12, 24, 40)), ((8, 6), (12, 40, 24))])
def test_what_is_copied_before_the_result_is_asked_for_before_it(
    capability: tuple[int, int], order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 MiB of input, 24 of weight, 40 of output: unfolding copies both first, cuDNN the input alone."""
    x, w, y = (1, 6, 1024, 1024), (1024, 1024, 3, 4), (1, 20, 1024, 1024)
    unfolds = capability < (8, 0)
    conv = Conv("bfloat16", x, w, y, (1, 1), input_last=True, weight_last=unfolds, copied=not unfolds)
    program = course(Call(0, "vae", ()), bodies=(body(Alloc(0, 40 * MiB), Run(0), Free(0)),), kernels=(conv,))
    asked: list[int] = []
    malloc = Allocator.malloc
    monkeypatch.setattr(Allocator, "malloc", lambda *given: (asked.append(given[1] // MiB), malloc(*given))[1])
    rehearse(program, device(capability))
    assert tuple(asked[:3]) == order


def test_what_an_attentions_output_replaces_goes_before_the_callers_copy_of_it() -> None:
    """`hidden_states = attention(…)` frees the old ones; `reshape` then copies what math gave head by head."""
    before, output, later = 1, 2, 3
    done = body(Alloc(before, MiB), Alloc(output, 512), Run(0), Free(before), Alloc(later, 512), Free(output))

    def order(backend: str) -> list[tuple[int, int]]:
        kernel = Attention("float16", 1, 2, 64, 64, 32, 32, backend=backend)
        program = course(Call(0, "unet", ()), bodies=(done,), kernels=(kernel,))
        return [step for step in score.Scores(device()).of(program, 0).steps if step[0] in (before, output, later)]

    assert order("flash") == [(1, MiB), (2, 512), (1, 0), (3, 512), (2, 0)]
    assert order("math") == [(1, MiB), (1, 0), (2, 512), (3, 512), (2, 0)]


def test_an_output_that_comes_late_finds_the_room_its_kernel_left() -> None:
    """Math scales 16 MiB of q and of k, and holds scores and softmax of 128 MiB and a mask of 32 before its output."""
    kernel = Attention("float32", 1, 8, 2048, 2048, 256, 256, backend="math")
    attend = body(Alloc(0, 16 * MiB), Run(0), Free(0))
    program = course(Call(0, "unet", ()), bodies=(attend,), kernels=(kernel,))
    rehearsal = rehearse(program, device())
    assert rehearsal.allocated == (16 + 2 * 128 + 32) * MiB + 8 * 2048 + 512
    assert rehearsal.reserved == (2 * 16 + 2 * 128 + 32 + 2) * MiB
    assert Cost(device()).phases(program)[-1].peak.total == rehearsal.allocated + CUBLAS


def test_a_cast_exchanges_one_tensor_after_the_other() -> None:
    """The new tensor is there before the old one goes: beside three of 12 MiB never more than one old one."""
    program = course(Load("vae", (6 * MiB,) * 3), Empty(), Cast("vae", (12 * MiB,) * 3))
    rehearsal = rehearse(program, device())
    assert rehearsal.allocated == 6 * MiB + 3 * 12 * MiB


def test_repeated_calls_cost_no_more_than_their_first() -> None:
    work = body(Alloc(0, 3 * MiB), Alloc(1, 5 * MiB), Free(0), Free(1))
    once = course(Call(0, "unet", ()), bodies=(work,))
    often = course(*[Call(0, "unet", ())] * 1000, bodies=(work,))
    assert rehearse(once, device()) == rehearse(often, device())


def often(program: Program, times: int = 4) -> Program:
    """The course as a body that is called several times and leaves nothing behind."""
    alive: set[int] = set()
    for event in program.events:
        match event:
            case Alloc(buffer):
                alive.add(buffer)
            case Call(_, _, kept):
                alive.update(outer for _, outer in kept)
            case Free(buffer):
                alive.discard(buffer)
    whole = Recording(name="Step", own=(), events=(*program.events, *map(Free, sorted(alive))))
    calls = (Call(len(program.recordings), "", ()),) * times
    return replace(program, recordings=(*program.recordings, whole)).with_course(calls)


@settings(max_examples=200, deadline=None)
@given(programs(), st.sampled_from([resident, model_offload, sequential_offload]), st.integers(10, 120), st.booleans())
def test_what_is_answered_from_a_layout_or_written_out_is_what_a_replay_shows(
    program: Program, placement: Callable[[Program], Program], mebibytes: int, expandable: bool
) -> None:
    """FLUX.1's decode found no room among gaps that its eighth block had not left yet."""
    repeated, card, never = placement(often(begun(program)).repeated(2)), device(), 10**9

    def seen(few: int) -> rehearsing.Rehearsal:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rehearsing, "FEW", few)
            patch.setattr(score, "FEW", few)
            return rehearse(repeated, card, capacity=mebibytes * MiB, expandable=expandable)

    assert seen(0) == seen(never)


def test_a_body_met_in_one_layout_is_replayed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call grows the cache, the second finds it grown, and from then on nothing is new."""
    replayed: list[int] = []
    replay = rehearsing._Stage._replay

    def counted(stage: rehearsing._Stage, recording: int) -> rehearsing._Scene:
        replayed.append(recording)
        return replay(stage, recording)

    monkeypatch.setattr(rehearsing._Stage, "_replay", counted)
    pairs = [event for n in range(rehearsing.FEW) for event in (Alloc(n, (2 + n % 12) * MiB), Free(n))]
    program = course(*[Call(0, "unet", ())] * 50, bodies=(body(*pairs),))
    assert rehearse(program, device()).allocated == 13 * MiB
    assert replayed == [0, 0]


def test_calls_under_more_load_are_replayed_again() -> None:
    """The third call runs beside 30 MiB that the first two did not know."""
    work = body(Alloc(0, 12 * MiB), Free(0))
    call = Call(0, "unet", ())
    program = course(call, call, call, Alloc(0, 30 * MiB), call, bodies=(work,))
    assert rehearse(program, device()).allocated == 42 * MiB
    assert rehearse(program, device(), capacity=40 * MiB).failed == "unet"


@settings(max_examples=60, deadline=None)
@given(programs())
def test_expandable_segments_reserve_little_more_than_is_allocated(program: Program) -> None:
    """Pages of 20 MiB and of 2 MiB: at most one of each kind is partly used when nothing was freed between."""
    card = device()
    plain, expandable = rehearse(program, card), rehearse(program, card, expandable=True)
    assert expandable.allocated <= plain.allocated  # blocks are always split
    assert expandable.allocated <= expandable.reserved
    assert [name for name, _, _ in expandable.phases] == [name for name, _, _ in plain.phases]


def test_expandable_segments_join_what_was_freed() -> None:
    """12 + 12 + 24 MiB: the last fits where the first two lay, and needs a segment of its own otherwise."""
    sizes = 12 * MiB, 12 * MiB, 24 * MiB
    events = (Alloc(0, sizes[0]), Alloc(1, sizes[1]), Free(0), Free(1), Alloc(2, sizes[2]), Free(2))
    program = course(*events)
    assert rehearse(program, device()).reserved == 48 * MiB
    assert rehearse(program, device(), expandable=True).reserved == 40 * MiB


def test_a_cap_has_to_hold_whatever_the_order_of_loading() -> None:
    """7 + 7 MiB leave 6 of a segment of 20, which the other's 6 fill; after its 6, 9 and 9 the second 7 do not fit."""
    first, second = Load("unet", (7 * MiB, 7 * MiB)), Load("vae", (6 * MiB, 9 * MiB, 9 * MiB))
    reserved = [rehearse(course(*order), device()).reserved for order in ((first, second), (second, first))]
    best, worst = sorted(reserved)
    assert (best, worst) == (40 * MiB, 60 * MiB)
    for order in ((first, second), (second, first)):
        assert not rehearse(course(*order), device(), capacity=worst).failed
        assert rehearse(course(*order), device(), capacity=worst - MiB).failed


def test_components_loaded_alone_have_one_order() -> None:
    one = course(Load("unet", (12 * MiB, 12 * MiB)))
    assert not rehearse(one, device(), capacity=24 * MiB).failed


def split(program: Program, calls: int, written: int) -> Program:
    """The program as one of several calls, so many of them written out."""
    return replace(program, variant=Variant(splits=calls)).repeated(written)


def test_a_later_call_of_a_split_can_lack_what_the_first_had() -> None:
    """What the scheduler keeps of the first call lies there while the second encodes, until the denoiser is called."""
    encoder, denoiser = body(Alloc(0, 40 * MiB), Free(0)), body(Alloc(0, 12 * MiB))
    program = course(
        Call(0, "text_encoder", ()),
        Call(1, "unet", ((0, 0),)),
        bodies=(encoder, denoiser),
        components=(text_encoder(), unet()),
    )
    two = split(program, 2, 2)
    assert rehearse(program, device()).allocated == 40 * MiB
    assert rehearse(two, device()).phases == (("text_encoder", 52 * MiB, 80 * MiB), ("unet", 12 * MiB, 80 * MiB))
    assert not rehearse(program, device(), capacity=48 * MiB).failed
    assert rehearse(two, device(), capacity=48 * MiB).failed == "text_encoder"


def test_under_a_cap_the_next_call_has_to_run_too() -> None:
    """It encodes beside what the scheduler keeps of the call before.  Peaks are those of the first."""
    encoder, denoiser = body(Alloc(0, 40 * MiB), Free(0)), body(Alloc(0, 12 * MiB))
    events = Call(0, "text_encoder", ()), Call(1, "unet", ((0, 0),))
    one = course(*events, bodies=(encoder, denoiser), components=(text_encoder(), unet()))
    assert rehearse(one.repeated(2), device()) == rehearse(one, device())
    assert not rehearse(one, device(), capacity=60 * MiB).failed
    assert rehearse(one.repeated(2), device(), capacity=60 * MiB).failed == "text_encoder"
    roomy = rehearse(one.repeated(2), device(), capacity=90 * MiB)
    assert (roomy.failed, roomy.allocated, roomy.reserved) == ("", 40 * MiB, 40 * MiB)
    assert roomy.enough == ceil(80 * MiB / (1 - NEAR))  # nearer than that further calls are looked at


def test_a_cap_under_which_two_calls_run_may_be_too_small_for_the_third() -> None:
    """40 MiB and 24 that stay change places: what one leaves is where the other lies down."""
    long, short, work = Alloc(0, 40 * MiB), Alloc(1, 24 * MiB), (Alloc(2, 24 * MiB), Free(2))
    program = course(long, Gone(0), short, Gone(1), *work).repeated(2)
    seen = rehearse(program, device(), capacity=104 * MiB)
    assert (seen.failed, seen.calls) == ("start", 2)


def test_both_halves_of_the_next_request_are_rehearsed() -> None:
    """Its first half begins with an emptied cache; its second meets what that one left, as none before."""
    work = Alloc(0, 50 * MiB), Free(0), Alloc(1, 20 * MiB), Alloc(2, 40 * MiB), Free(1), Gone(0)
    seen = rehearse(split(course(*work), 2, 3), device(), capacity=130 * MiB)
    assert (seen.failed, seen.calls) == ("start", 3)


@st.composite
def calls_that_leave_something(draw: st.DrawFn) -> Program:
    """A few large tensors, of which one or two outlive the call and go somewhere in the next."""
    sizes = draw(st.lists(st.sampled_from((2, 6, 9, 12, 14, 24, 30, 40, 50)), min_size=3, max_size=6))
    staying = draw(st.sets(st.sampled_from(range(len(sizes))), min_size=1, max_size=2))
    events: list[Event] = []
    for buffer, size in enumerate(sizes):
        events.append(Alloc(buffer, size * MiB))
    for buffer in {*range(len(sizes))} - staying:
        events.insert(
            draw(st.integers(events.index(Alloc(buffer, sizes[buffer] * MiB)) + 1, len(events))), Free(buffer)
        )
    for place in range(len(staying)):
        events.insert(draw(st.integers(0, len(events))), Gone(place))
    return course(*events)


@settings(max_examples=200, deadline=None)
@given(calls_that_leave_something(), st.integers(1, 3), st.integers(60, 200))
def test_what_repeats_is_not_looked_at_again(program: Program, splits: int, mebibytes: int) -> None:
    """Where a request or a part of it begins as one before it did, the rest shows the same."""
    whole = split(program, splits, splits + 1)

    def seen(state: Callable[[rehearsing._Stage], object] | None = None) -> tuple[str, int, int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rehearsing, "NEAR", 1.0)
            if state:
                patch.setattr(rehearsing._Stage, "_state", state)
            found = rehearse(whole, device(), capacity=mebibytes * MiB)
        return found.failed, found.missing, found.reserved

    fresh = count()
    assert seen() == seen(lambda _: (next(fresh),))


def test_what_a_call_leaves_goes_where_the_next_one_lets_go_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 MiB that the denoiser leaves lie in the segment of 40 that encoding and decoding ask for, too."""
    monkeypatch.setattr(rehearsing, "NEAR", 0)

    def enough(*events: Event) -> int:
        program = course(*events, bodies=(work, keeps), components=(text_encoder(), unet())).repeated(2)
        return rehearse(program, device(), capacity=200 * MiB).enough // MiB

    work, keeps = body(Alloc(0, 40 * MiB), Free(0)), body(Alloc(0, 24 * MiB))
    encoded, denoised, decoded = Call(0, "text_encoder", ()), Call(1, "unet", ((0, 0),)), Call(0, "vae", ())
    assert enough(Gone(0), encoded, denoised) == 40
    assert enough(encoded, Gone(0), denoised) == enough(encoded, denoised) == 80
    assert enough(Gone(0), encoded, denoised, decoded) == enough(encoded, Gone(0), denoised, decoded) == 80
    assert enough(encoded, denoised, decoded, Gone(0)) == 120


def test_after_a_call_that_was_short_the_next_begins_with_an_emptied_cache() -> None:
    """Else 11 MiB that stay lie down in the segment of 50 that the first call left, and 50 find no room within 64."""
    lives = Alloc(0, 12 * MiB), Alloc(1, 11 * MiB), Free(0), Alloc(2, 30 * MiB), Free(2), Alloc(3, 50 * MiB), Free(3)
    program = course(Call(0, "unet", ()), bodies=(body(*lives, Free(1)),))
    seen = rehearse(program.repeated(2), device(), capacity=64 * MiB)
    assert (seen.failed, seen.retries) == ("", 2)
    assert rehearse(split(program, 2, 2), device(), capacity=64 * MiB).failed == "unet"


def test_calls_of_a_split_are_rehearsed_until_one_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a denoiser nothing ends what each call leaves: all are replayed, more than are written like the last."""
    leaves, keeps = (body(Alloc(0, 12 * MiB), *ends) for ends in ((), (Free(0),)))
    growing = course(Call(0, "unet", ((0, 0),)), bodies=(leaves,))
    assert rehearse(split(growing, 5, 3), device()).allocated == 5 * 12 * MiB
    assert rehearse(growing, device()).allocated == 12 * MiB
    taken: list[object] = []
    take = rehearsing._Stage.take
    monkeypatch.setattr(rehearsing._Stage, "take", lambda *given: (taken.append(given[1]), take(*given)))
    assert rehearse(split(course(Call(0, "unet", ()), bodies=(keeps,)), 50, 3), device()).reserved == 12 * MiB
    assert sum(isinstance(event, Call) for event in taken) == 3
    taken.clear()
    rehearse(split(course(Call(0, "unet", ()), bodies=(keeps,)), 50, 3), device(), capacity=12 * MiB)
    assert sum(isinstance(event, Call) for event in taken) == 4  # and the next call of the pipeline


def test_bodies_are_replayed_anew_in_each_call_of_a_split() -> None:
    """Gaps are others than in the call before, though no more is held: 12 MiB lie where the body had its 24."""
    work, steps = body(Alloc(0, 24 * MiB), Free(0)), (Call(0, "unet", ()),) * 3
    elsewhere = Load("vae", (12 * MiB,)), Drop("unet", copied=False)
    events = Load("unet", (12 * MiB,)), *steps, Again(), *elsewhere, *steps
    assert not rehearse(course(*events[:4], bodies=(work,)), device(), capacity=36 * MiB).failed
    assert rehearse(course(*events, bodies=(work,)), device(), capacity=36 * MiB).failed == "unet"
