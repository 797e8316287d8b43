"""Group offload in programs made by hand: what is loaded, fetched and dropped when, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from techniques.programs import device

from planner.allocator import Allocator
from planner.cost import Cost
from planner.events import Alloc, Await, Call, Cast, Drop, Enter, Event, Exit, Fetch, Free, Join, Load, Run, Stay
from planner.group_hooks import Grouping
from planner.group_offload import group_offload, group_offload_one, groupable, host_bytes, pinned
from planner.kernels import Plain
from planner.program import Component, Program, Recording, Stack, Unit, Variant
from planner.rehearsal import _Stage, rehearse
from planner.score import Scores
from planner.trace import component_of

BLOCK, LEAF = Grouping(blocks=1), Grouping()
AHEAD, LEAVES_AHEAD = Grouping(blocks=1, stream=True), Grouping(stream=True)
WEIGHTS = (10, 100, 20, 200, 40)
"""Of `first`, and two layers in each of two blocks."""
STACK = Stack("", ((Unit(("blocks.0",), (1, 2)), Unit(("blocks.1",), (3, 4))),), (0,))


def layer(size: int) -> Recording:
    """A leaf that makes something and leaves it."""
    return Recording("Linear", (size,), (Alloc(0, size * 512), Run(0)))


def denoiser(steps: int = 2) -> Program:
    """`first`, then two blocks of two layers, called once a step; each frees what the one before it left."""
    leaves = tuple(map(layer, WEIGHTS))
    blocks = tuple(
        Recording("Block", (), (Call(a, "up", ((0, 0),)), Call(a + 1, "down", ((0, 1),)), Free(0))) for a in (1, 3)
    )
    whole = Recording(
        "Net", (),
        (Call(0, "first", ((0, 0),)), Call(5, "blocks.0", ((1, 1),)), Free(0), Call(6, "blocks.1", ((1, 2),)), Free(1)),
    )  # fmt: skip
    calls = tuple(event for step in range(steps) for event in (Call(7, "unet", ((2, step),)), Free(step)))
    component = Component("unet", "Net", "float16", WEIGHTS, traits=frozenset({"denoiser"}), stacks=(STACK,))
    return Program(
        pipeline="Pipe", variant=Variant(), components=(component,), chain=("unet",), excluded=frozenset(),
        kernels=(Plain("mul", 1, 1),), recordings=(*leaves, *blocks, whole, Recording("Pipe", (), calls)), course=8,
    )  # fmt: skip


def flat(program: Program, index: int | None = None) -> Iterator[Event]:
    """All events in order, bodies written out."""
    index = program.course if index is None else index
    for event in program.body(index):
        if isinstance(event, Call):
            yield from flat(program, event.recording)
        else:
            yield event


def travels(program: Program, index: int | None = None) -> list[tuple[str, str, int]]:
    """What weights do: the event, the group, and its bytes where they come."""
    found: list[tuple[str, str, int]] = []
    for event in flat(program, index):
        if isinstance(event, (Load, Fetch)):
            found.append((type(event).__name__, event.key, sum(event.weights)))
        elif isinstance(event, (Await, Drop)):
            found.append((type(event).__name__, event.key, 0))
    return found


def passes(program: Program) -> list[list[tuple[str, str, int]]]:
    """The travels of each call of the component."""
    calls = [e for e in program.recordings[program.course].events if isinstance(e, Call)]
    return [travels(program, call.recording) for call in calls]


def lives(events: Iterable[Event]) -> list[tuple[str, int]]:
    """What becomes of buffers and when kernels run, whatever the buffers are called."""
    return [
        (type(e).__name__, e.size if isinstance(e, Alloc) else 0) for e in events if isinstance(e, (Alloc, Free, Run))
    ]


@pytest.mark.parametrize("grouping", [BLOCK, LEAF, AHEAD, LEAVES_AHEAD])
def test_one_component_by_itself_travels_as_it_does_among_all(grouping: Grouping) -> None:
    """Twice the same component under two names: each written by itself gives what both give together."""
    program, other = denoiser(), replace(denoiser().components[0], name="other")
    course = program.recordings[program.course]
    calls = tuple(e._replace(module="other") if isinstance(e, Call) else e for e in course.events)
    both = replace(program, components=(program.components[0], other), chain=("unet", "other"))
    both = both.with_course((*course.events, *calls))
    together = group_offload(both, grouping, ("unet", "other"))
    singly = group_offload_one(group_offload_one(both, grouping, "unet"), grouping, "other")
    assert passes(singly) == passes(together)
    assert singly.waiting == together.waiting
    assert [component.weights for component in singly.components] == [(), ()]
    assert all("travels" in component.traits for component in singly.components)
    streams = [{e.stream for e in flat(singly) if isinstance(e, Fetch)}, {1, 2} if grouping.stream else set()]
    assert streams[0] == streams[1], "each has a stream of its own"


def test_blocks_come_and_go_one_after_another_inside_the_rest() -> None:
    first, second = passes(group_offload(denoiser(), BLOCK, ("unet",)))
    assert first == second
    assert [(event, size) for event, _, size in first] == [
        ("Load", 10), ("Load", 120), ("Drop", 0), ("Load", 240), ("Drop", 0), ("Drop", 0)
    ]  # fmt: skip
    assert first[0][1] == first[-1][1]


@pytest.mark.parametrize(("disk", "later"), [(False, 17), (True, 10)])
def test_tables_beside_the_blocks_come_twice_from_the_second_turn_on(disk: bool, later: int) -> None:
    program = denoiser(3)
    stack = STACK._replace(rest=(0,), tables=(5,))
    unet = replace(program.components[0], weights=(*WEIGHTS, 7), stacks=(stack,))
    several = passes(group_offload(replace(program, components=(unet,)), replace(BLOCK, disk=disk), ("unet",)))
    assert [call[0][2] for call in several] == [10, later, later]


def test_tables_of_streamed_blocks_stay_until_they_are_brought_anew() -> None:
    """diffusers puts back the parameters of a group's modules, not their buffers (ModuleGroup._offload_to_memory)."""
    program = denoiser(3)
    stack = STACK._replace(lists=((Unit(("blocks.0",), (1, 2, 5)), STACK.lists[0][1]),), lasting=(5,))
    unet = replace(program.components[0], weights=(*WEIGHTS, 7), stacks=(stack,))
    program = replace(program, components=(unet,))

    def of_tables(grouping: Grouping) -> list[list[str]]:
        course = group_offload(program, grouping, ("unet",))
        calls = [e.recording for e in course.recordings[course.course].events if isinstance(e, Call)]
        return [
            [type(e).__name__ for e in flat(course, call) if isinstance(e, (Fetch, Stay, Drop)) and "tables" in e.key]
            for call in calls
        ]

    assert of_tables(AHEAD) == [["Fetch", "Drop"], *[["Stay", "Fetch", "Drop", "Drop"]] * 2]
    assert of_tables(replace(AHEAD, disk=True)) == of_tables(BLOCK) == [[]] * 3
    course = group_offload(program, AHEAD, ("unet",))
    between = [e for e in course.recordings[course.course].events if isinstance(e, (Stay, Drop))]
    assert [type(e).__name__ for e in between] == ["Stay", "Drop", "Stay", "Drop", "Stay"], "and to the end"
    assert all(e.weights == (7,) if isinstance(e, Stay) else e.handed for e in between)


def test_what_is_handed_over_stays_where_it_is() -> None:
    handed = Drop("a", copied=False, handed=True)
    course = (Load("x", (600,)), Load("a", (2_000,)), Drop("x", copied=False), handed, Stay("a", (2_000,)))
    program = denoiser(0).with_course(course)
    stage = _Stage(program, device(), Allocator(), Cost(device()), Scores(device()))
    for event in course[:3]:
        stage.take(event, stage.course)
    ((before,),) = stage.course.weights["a"]
    for event in course[3:]:
        stage.take(event, stage.course)
    ((after,),) = stage.course.weights["a"]
    assert after is before


def test_without_a_stream_weights_are_copied_back() -> None:
    drops = [e for e in flat(group_offload(denoiser(), BLOCK, ("unet",))) if isinstance(e, Drop)]
    assert all(drop.copied for drop in drops)
    onto_disk = group_offload(denoiser(), replace(BLOCK, disk=True), ("unet",))
    assert not any(e.copied for e in flat(onto_disk) if isinstance(e, Drop))


def test_several_blocks_travel_together() -> None:
    first, _ = passes(group_offload(denoiser(), Grouping(blocks=4), ("unet",)))
    assert [size for event, _, size in first if event == "Load"] == [10, 360]


def test_with_a_stream_the_second_pass_knows_what_follows() -> None:
    first, second = passes(group_offload(denoiser(), AHEAD, ("unet",)))
    assert [e for e, _, _ in first] == ["Load", "Fetch", "Await", "Drop", "Fetch", "Await", "Drop", "Drop"]
    assert [(e, k) for e, k, _ in second] == [
        ("Load", "/rest"), ("Fetch", "blocks.0"), ("Await", "blocks.0"), ("Fetch", "blocks.1"), ("Drop", "blocks.0"),
        ("Await", "blocks.1"), ("Drop", "blocks.1"), ("Drop", "/rest"),
    ]  # fmt: skip


def test_leaf_by_leaf_each_layer_travels_alone() -> None:
    first, second = passes(group_offload(denoiser(), LEAF, ("unet",)))
    assert first == second
    assert [size for event, _, size in first if event == "Load"] == list(WEIGHTS)
    assert [event for event, _, _ in first] == ["Load", "Drop"] * 5


def test_leaves_are_fetched_while_the_one_before_runs() -> None:
    first, second = passes(group_offload(denoiser(), LEAVES_AHEAD, ("unet",)))
    assert [e for e, k, _ in first if k] == ["Fetch", "Await", "Drop"] * 5
    keys = [k for e, k, _ in second if e == "Fetch" and k]
    assert keys == ["first", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
    order = [(e, k) for e, k, _ in second]
    for before, after in pairwise(keys):
        assert order.index(("Fetch", after)) < order.index(("Drop", before)) < order.index(("Await", after))


@pytest.mark.parametrize(("changes", "source"), [({"pinned": False}, "pageable"), ({"disk": True}, "disk")])
def test_what_is_pinned_in_flight_travels_alike_and_costs_the_host(changes: dict[str, bool], source: str) -> None:
    plain, other = (group_offload(denoiser(), g, ("unet",)) for g in (LEAVES_AHEAD, replace(LEAVES_AHEAD, **changes)))
    assert travels(other) == travels(plain)
    assert {event.source for event in flat(other) if isinstance(event, Fetch)} == {source}
    most = 16 + 128 + 32 + 256 + 64
    assert other.waiting == most + (0 if source == "disk" else sum(WEIGHTS)), "one leaf at a time, each in its size"
    slower, quicker = (sum(phase.seconds for phase in Cost(device()).phases(p)) for p in (other, plain))
    assert slower > quicker


def test_on_disk_host_memory_holds_what_is_on_its_way() -> None:
    program = group_offload(denoiser(), replace(BLOCK, disk=True), ("unet",))
    assert {event.source for event in flat(program) if isinstance(event, Load)} == {"disk"}
    assert program.waiting == 16 + 128 + 32 + 256 + 64, "groups of 10, 100 and 20, and 200 and 40"


def test_recorded_streams_spare_the_host_and_keep_room_longer() -> None:
    plain, recorded = (
        group_offload(denoiser(6), g, ("unet",)) for g in (LEAVES_AHEAD, replace(LEAVES_AHEAD, record=True))
    )
    assert not any(isinstance(event, Join) for event in flat(recorded))
    assert all(event.late for event in flat(recorded) if isinstance(event, Drop))
    one, other = rehearse(plain, device()), rehearse(recorded, device())
    assert other.allocated == one.allocated
    assert other.reserved >= one.reserved


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.sampled_from((BLOCK, LEAF, AHEAD, LEAVES_AHEAD)))
def test_buffers_and_kernels_are_as_before_and_no_weights_stay(steps: Sequence[int], grouping: Grouping) -> None:
    program = denoiser(sum(steps))
    changed = group_offload(program, grouping, ("unet",))
    assert lives(flat(changed)) == lives(flat(program))
    held: dict[str, int] = {}
    for event in flat(changed):
        if isinstance(event, (Load, Fetch)):
            held[event.key] = held.get(event.key, 0) + 1
            assert held[event.key] == 1
        elif isinstance(event, Drop):
            held[event.key] -= 1
    assert not any(held.values())


def test_others_are_on_the_card_from_the_start() -> None:
    program = denoiser()
    vae = Component("vae", "AutoencoderKL", "float16", (7, 8))
    changed = group_offload(replace(program, components=(*program.components, vae)), BLOCK, ("unet",))
    assert changed.recordings[changed.course].events[0] == Load("vae", (7, 8))


def test_a_body_that_was_written_into_the_course_bears_hooks_too() -> None:
    program = denoiser()
    inner = program.recordings[7].events
    course = (Enter("unet", ()), *inner, Exit(), Free(2), Call(7, "unet", ((2, 3),)), Free(3))
    changed = group_offload(program.with_course(course), AHEAD, ("unet",))
    events = [type(e).__name__ for e in flat(changed) if isinstance(e, (Load, Fetch, Await, Drop))]
    assert events[:8] == ["Load", "Fetch", "Await", "Drop", "Fetch", "Await", "Drop", "Drop"]
    assert events[8:] == ["Load", "Fetch", "Await", "Fetch", "Drop", "Await", "Drop", "Drop"]
    assert lives(flat(changed)) == lives(flat(program.with_course(course)))


def test_a_second_call_of_the_pipeline_knows_what_follows() -> None:
    """Even a component that is called once in each, as text encoders are."""
    changed = group_offload(denoiser(steps=1).repeated(3), AHEAD, ("unet",))
    first, second, third = passes(changed)
    assert first != second
    assert second == third


def test_every_component_has_a_stream_of_its_own() -> None:
    program = denoiser()
    other = replace(program.components[0], name="unet_2")
    events = program.recordings[8].events
    twice = tuple(e._replace(module="unet_2") if isinstance(e, Call) and n > 1 else e for n, e in enumerate(events))
    two = replace(program, components=(*program.components, other)).with_course(twice)
    changed = group_offload(two, AHEAD, ("unet", "unet_2"))
    assert {e.stream for e in flat(changed) if isinstance(e, Fetch)} == {1, 2}
    assert {e.stream for e in flat(changed) if isinstance(e, Load)} == {0}


def test_weights_cast_on_the_host_travel_in_their_new_size() -> None:
    program = denoiser()
    doubled = tuple(2 * size for size in WEIGHTS)
    events = program.recordings[8].events
    cast = program.with_course((*events[:2], Cast("unet", doubled), *events[2:]))
    assert groupable(cast, "unet", BLOCK)
    assert not groupable(cast, "unet", AHEAD)
    changed = group_offload(cast, BLOCK, ("unet",))
    assert not any(isinstance(e, Cast) for e in changed.recordings[changed.course].events)
    assert [size for e, _, size in travels(changed) if e == "Load"] == [10, 120, 240, 20, 240, 480]


def test_what_decode_needs_beside_the_lists_is_never_loaded_by_blocks() -> None:
    program = denoiser()
    events = tuple(e._replace(module="unet.decode") if isinstance(e, Call) else e for e in program.recordings[8].events)
    decoded = program.with_course(events)
    assert not groupable(decoded, "unet", BLOCK)
    assert groupable(decoded, "unet", LEAF)
    first, second = passes(group_offload(decoded, LEAVES_AHEAD, ("unet",)))
    assert first == second, "no order is learnt where `forward` never ends"
    unhooked = replace(program, components=(replace(program.components[0], stacks=()),))
    assert not groupable(unhooked, "unet", LEAF)


def test_blocks_that_are_lists_are_never_called_and_stay_behind() -> None:
    unet = torch.nn.Module()
    unet.down_blocks = torch.nn.ModuleList([torch.nn.ModuleList([torch.nn.Linear(2, 2)])])
    traits = component_of("unet", unet, SimpleNamespace(unet=unet)).traits
    assert "lists_of_lists" in traits
    program = denoiser()
    listed = replace(program, components=(replace(program.components[0], traits=traits),))
    assert groupable(program, "unet", BLOCK)
    assert not groupable(listed, "unet", BLOCK)
    assert groupable(listed, "unet", LEAF)


@pytest.mark.parametrize(("size", "rounded"), [(0, 0), (1, 1), (512, 512), (513, 1024), (3 * 2**20, 2**22)])
def test_pinned_memory_is_rounded_up_to_a_power_of_two(size: int, rounded: int) -> None:
    assert pinned(size) == rounded


def test_host_memory() -> None:
    component = denoiser().components[0]
    assert host_bytes(component, BLOCK) == 370
    assert host_bytes(component, LEAVES_AHEAD) == 16 + 128 + 32 + 256 + 64
    assert host_bytes(component, AHEAD) == 10 + 128 + 32 + 256 + 64, "the rest is never pinned"
    assert host_bytes(component, replace(LEAVES_AHEAD, pinned=False)) == 370
    assert host_bytes(component, replace(LEAF, disk=True)) == 0
    assert group_offload(denoiser(), AHEAD, ("unet",)).waiting == 490


def test_what_the_last_module_leads_waits_on_the_card_for_the_next_call() -> None:
    program = denoiser(steps=3)
    again = replace(program.recordings[7], events=(*program.recordings[7].events, Call(0, "first", ((0, 3),)), Free(3)))
    program = replace(program, recordings=(*program.recordings[:7], again, program.recordings[8]))
    grouped = group_offload(program, LEAVES_AHEAD, ["unet"])
    course = [
        (type(event).__name__, event.weights if isinstance(event, Stay) else ())
        for event in grouped.recordings[grouped.course].events
        if isinstance(event, (Call, Stay, Drop))
    ]
    called, left, gone = ("Call", ()), ("Stay", (WEIGHTS[1],)), ("Drop", ())
    assert course == [called, called, left, gone, called, left]


@pytest.mark.parametrize("grouping", [LEAF, LEAVES_AHEAD])
def test_by_leaves_tables_travel_with_their_module(grouping: Grouping) -> None:
    program = denoiser(steps=1)
    tables = (Unit(("blocks.0",), (5,)), Unit(("blocks.1.up",), (6,)))
    unet = replace(program.components[0], weights=(*WEIGHTS, 7, 70), anchored=(7, 70), tables=tables)
    (call,) = passes(group_offload(replace(program, components=(unet,)), grouping, ("unet",)))
    assert [size for event, _, size in call if event in ("Load", "Fetch") and size] == [10, 7, 100, 20, 270, 40]
    story = [event for event, key, _ in call if event != "Await" and (key or not grouping.stream)]
    comes = "Fetch" if grouping.stream else "Load"
    assert story[2:8] == [comes, comes, "Drop", comes, "Drop", "Drop"], "around its layers"


def test_by_leaves_a_layers_tables_stay_after_a_stream_until_they_are_brought_anew() -> None:
    """As with blocks: of Gemma 2's embedding a scale stays (ModuleGroup._offload_to_memory)."""
    program, tables = denoiser(steps=2), (Unit(("blocks.0",), (5,)), Unit(("blocks.1.up",), (6,)))
    unet = replace(
        program.components[0], weights=(*WEIGHTS, 7, 70), anchored=(7, 70), tables=tables, lasting=("blocks.1.up",)
    )
    program = replace(program, components=(unet,))

    def of_tables(grouping: Grouping) -> list[list[tuple[str, int]]]:
        course = group_offload(program, grouping, ("unet",))
        found = ([entry for entry in call if "tables" in entry[1]] for call in passes(course))
        return [[(event, size) for event, _, size in call] for call in found]

    first, later = of_tables(LEAVES_AHEAD)
    assert first == [("Fetch", 70), ("Drop", 0)], "handed over"
    assert later == [("Fetch", 70), ("Drop", 0), ("Drop", 0)], "it stays when the call begins"
    assert of_tables(replace(LEAVES_AHEAD, disk=True)) == of_tables(LEAF) == [[], []]


def test_of_several_calls_those_count_that_know_the_order() -> None:
    """A text encoder runs once a call, so only from the second call on are two of its blocks there together."""
    once = denoiser(steps=1)
    twice = replace(once, variant=Variant(splits=2))
    (first,), (later,) = (passes(group_offload(program, AHEAD, ("unet",))) for program in (once, twice))
    assert [first, later] == passes(group_offload(denoiser(steps=2), AHEAD, ("unet",)))
    assert first != later


def test_a_later_call_begins_with_what_the_one_before_left() -> None:
    program = denoiser(steps=2)
    again = replace(program.recordings[7], events=(*program.recordings[7].events, Call(0, "first", ((0, 3),)), Free(3)))
    program = replace(program, recordings=(*program.recordings[:7], again, program.recordings[8]))
    grouped = group_offload(replace(program, variant=Variant(splits=2)), LEAVES_AHEAD, ["unet"])
    first, second, *_ = grouped.events
    assert first == Stay("unet/left", (WEIGHTS[1],), 1), "the first module, called last, led the one after it"
    assert second == Drop("unet/left", copied=False), "in the call that follows it takes its place again"


def test_what_a_call_passed_over_is_there_until_it_is_used() -> None:
    program = denoiser(steps=3)
    short = replace(program.recordings[5], events=(Call(1, "up", ((0, 1),)),))
    whole = replace(
        program.recordings[7], events=tuple(e._replace(recording=10) if isinstance(e, Call) and e.recording == 5 else e
                                            for e in program.recordings[7].events)
    )  # fmt: skip
    course = Recording("Pipe", (), (Call(7, "unet", ((2, 0),)), Call(9, "unet", ((2, 1),)), Call(7, "unet", ((2, 2),))))
    program = replace(program, recordings=(*program.recordings[:8], course, whole, short))
    grouped = group_offload(program, LEAVES_AHEAD, ["unet"])
    _, passing, after = [e.recording for e in grouped.recordings[grouped.course].events if isinstance(e, Call)]
    missed = "blocks.0.down"
    assert [e for e in flat(grouped, passing) if isinstance(e, Stay)] == []
    story = [type(e).__name__ for e in flat(grouped, after) if getattr(e, "key", "") == missed]
    assert story == ["Stay", "Fetch", "Drop", "Await", "Drop"], (
        "fetched anew: what was there goes when the new has come"
    )
    events = list(flat(grouped, after))
    assert sum(isinstance(e, Run) for e in events[: events.index(Drop(missed, copied=False))]) == 1


@pytest.mark.parametrize("grouping", [LEAF, LEAVES_AHEAD, BLOCK, AHEAD])
def test_what_others_wrote_is_what_would_be_written(grouping: Grouping) -> None:
    """Programs of one table share the bodies in which weights travel, with what the hooks learn in them."""
    one = denoiser(3)
    steps = [event for event in one.events if isinstance(event, Call)]
    courses = [one.events, tuple(steps[:1]), tuple(steps[:2]), tuple(steps * 2)]
    for course in courses:
        shared = group_offload(one.with_course(course), grouping, ["unet"])
        alone = group_offload(replace(one.with_course(course), anew={}), grouping, ["unet"])
        assert shared == alone
        assert shared.anew is one.anew
    written = [group_offload(one, grouping, ["unet"]).placed for _ in range(2)]
    assert all(first is again for first, again in zip(*written, strict=True))
