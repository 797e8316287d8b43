"""Offloading as diffusers does it, event by event and in sums done by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from reference import CUBLAS, MiB, body, course, programs
from techniques.programs import device

from planner.cost import Cost
from planner.events import Again, Alloc, Call, Cast, Drop, Empty, Ending, Enter, Event, Exit, Free, Load, Run
from planner.offload import lent, model_offload, resident, sequential_offload
from planner.program import STREAMED, Component, Program, Recording

TEXT, UNET, VAE, CONTROL, SAFETY = 20 * MiB, 100 * MiB, 10 * MiB, 30 * MiB, 5 * MiB
MOVES = ("Load", "Drop", "Empty", "Cast")
WORK = body(Alloc(0, MiB), Free(0))


def component(name: str, *weights: int) -> Component:
    return Component(name=name, kind=name.title(), dtype="float16", weights=weights)


COMPONENTS = (
    component("vae", VAE),
    component("text_encoder", TEXT),
    component("unet", UNET),
    component("controlnet", CONTROL),
    component("safety_checker", SAFETY),
)


def arrival(module: str, size: int) -> tuple[Event, ...]:
    return Enter(module, ()), Load(module.partition(".")[0], (size,)), Exit()


def calls(*modules: str) -> tuple[Event, ...]:
    return tuple(Call(0, module, ()) for module in modules)


def pipeline(*events: Event, work: Recording = WORK) -> Program:
    return course(
        *events,
        bodies=(work,),
        components=COMPONENTS,
        chain=("text_encoder", "image_encoder", "unet", "vae"),
        excluded=frozenset({"safety_checker"}),
    )


def held_at_calls(program: Program) -> list[tuple[str, int]]:
    """Each call and the bytes of weights on the card while it runs."""
    held: dict[str, int] = {}
    found: list[tuple[str, int]] = []
    for event in program.recordings[program.course].events:
        match event:
            case Load(key, sizes) | Cast(key, sizes):
                held[key] = sum(sizes)
            case Drop(key):
                del held[key]
            case Call(_, module) if module:
                found.append((module, sum(held.values())))
    return found


def told(events: tuple[Event, ...]) -> list[str]:
    """Events by kind and content; as plain tuples, `Load` and `Cast` of the same bytes would be equal."""
    return [repr(event) for event in events]


def test_resident_components_are_there_before_the_call() -> None:
    program = resident(pipeline(*calls("text_encoder", "unet", "vae.decode")))
    everything = TEXT + UNET + VAE + CONTROL + SAFETY
    assert held_at_calls(program) == [(m, everything) for m in ("text_encoder", "unet", "vae.decode")]
    phases = Cost(device()).phases(program)
    assert [phase.peak.total for phase in phases] == [everything + CUBLAS] + [everything + CUBLAS + MiB] * 3


def test_a_component_leaves_when_its_successor_is_called() -> None:
    program = model_offload(pipeline(*calls("text_encoder", "unet", "unet", "vae.decode")))
    assert told(program.recordings[program.course].events) == told(
        (
            Load("safety_checker", (SAFETY,)),
            *arrival("text_encoder", TEXT),
            *calls("text_encoder"),
            Drop("text_encoder", copied=True),
            Empty(),
            *arrival("unet", UNET),
            *calls("unet", "unet"),
            Drop("unet", copied=True),
            Empty(),
            *arrival("vae.decode", VAE),
            *calls("vae.decode"),
            Drop("vae", copied=True),
        )
    )
    peaks = {phase.name: phase.peak.total for phase in Cost(device()).phases(program)}
    assert peaks["unet"] == SAFETY + UNET + MiB + CUBLAS
    assert peaks["vae.decode"] == SAFETY + VAE + MiB + CUBLAS


def test_components_outside_the_chain_stay_once_they_came() -> None:
    order = ("text_encoder", "controlnet", "unet", "controlnet", "unet", "vae.decode", "safety_checker")
    assert held_at_calls(model_offload(pipeline(*calls(*order)))) == [
        ("text_encoder", SAFETY + TEXT),
        ("controlnet", SAFETY + TEXT + CONTROL),
        ("unet", SAFETY + CONTROL + UNET),
        ("controlnet", SAFETY + CONTROL + UNET),
        ("unet", SAFETY + CONTROL + UNET),
        ("vae.decode", SAFETY + CONTROL + VAE),
        ("safety_checker", SAFETY + CONTROL + VAE),
    ]


def test_only_the_direct_predecessor_leaves() -> None:
    """Encoding an image calls the VAE before the UNet: nothing precedes it on the card, and it stays until the end."""
    order = ("text_encoder", "vae.encode", "unet", "vae.decode")
    assert held_at_calls(model_offload(pipeline(*calls(*order)))) == [
        ("text_encoder", SAFETY + TEXT),
        ("vae.encode", SAFETY + TEXT + VAE),
        ("unet", SAFETY + VAE + UNET),
        ("vae.decode", SAFETY + VAE),
    ]


def test_the_chain_decides_over_what_is_in_it() -> None:
    """diffusers looks at exclusions only for components that the chain does not name."""
    program = replace(pipeline(*calls("text_encoder", "unet")), excluded=frozenset({"unet"}))
    assert held_at_calls(model_offload(program)) == [("text_encoder", TEXT), ("unet", UNET)]


def test_everything_but_the_excluded_leaves_in_the_end() -> None:
    program = model_offload(pipeline(*calls("controlnet", "unet", "safety_checker")))
    last = program.recordings[program.course].events[-2:]
    assert told(last) == told((Drop("unet", copied=True), Drop("controlnet", copied=True)))


def test_between_two_calls_everything_leaves_and_what_is_excluded_comes_back() -> None:
    """`maybe_free_model_hooks` sets the hooks anew: all goes to the host, and the cache is emptied."""
    program = model_offload(pipeline(*calls("text_encoder", "unet")).repeated(2))
    events, leaving = told(program.events), (Drop("unet", copied=True), Drop("safety_checker", copied=True), Empty())
    place = events.index(repr(Again()))
    assert events[place - 4 : place + 1] == told((*leaving, Load("safety_checker", (SAFETY,)), Again()))
    assert held_at_calls(program) == 2 * [("text_encoder", SAFETY + TEXT), ("unet", SAFETY + UNET)]


def test_everything_leaves_where_the_pipeline_says_so_once_and_before_its_own_variables_go() -> None:
    """What still lies in a segment then keeps it from the driver."""
    program = model_offload(pipeline(Alloc(0, 3), *calls("unet"), Ending(), Free(0)).repeated(2))
    away = (Drop("unet", copied=True), Drop("safety_checker", copied=True), Empty(), Load("safety_checker", (SAFETY,)))
    events, end = told(program.events), told((*away, Ending(), Free(0)))
    place = events.index(repr(Again()))
    assert events[place - len(end) : place] == events[-len(end) :] == end
    assert events[place + 1] == repr(Alloc(0, 3))


def test_casting_what_is_on_the_host_costs_nothing_until_it_arrives() -> None:
    cast = Cast("vae", (2 * VAE,))
    program = model_offload(pipeline(*calls("unet"), cast, *calls("vae.decode")))
    assert not any(isinstance(event, Cast) for event in program.recordings[program.course].events)
    assert held_at_calls(program) == [("unet", SAFETY + UNET), ("vae.decode", SAFETY + 2 * VAE)]


def test_casting_what_is_on_the_card_happens_there() -> None:
    back = Cast("vae", (VAE,))
    program = model_offload(pipeline(*calls("vae.encode"), Cast("vae", (2 * VAE,)), *calls("vae.decode"), back))
    assert held_at_calls(program) == [("vae.encode", SAFETY + VAE), ("vae.decode", SAFETY + 2 * VAE)]
    assert told(program.recordings[program.course].events[-2:]) == told((back, Drop("vae", copied=True)))


def test_sequential_offload_brings_each_modules_own_weights_while_it_runs() -> None:
    leaf = body(Alloc(0, MiB), own=(4 * MiB, 512))
    block = body(Call(0, "linear", ((0, 0),)), Call(0, "linear", ((0, 1),)), own=(1024,))
    program = course(Call(1, "unet", ((0, 0), (1, 1))), bodies=(leaf, block), components=(component("unet", 10 * MiB),))
    streamed = sequential_offload(program)
    assert told(streamed.body(STREAMED)) == told(
        (Load("", (4 * MiB, 512)), Empty(), Alloc(0, MiB), Drop("", copied=False))
    )
    assert streamed.body(0) == program.body(0)
    (_, phase) = Cost(device()).phases(streamed)
    assert phase.peak.weights == 1024 + 4 * MiB + 512
    assert phase.peak.activations == CUBLAS + 2 * MiB


def test_buffers_that_stay_are_on_the_card_all_the_time() -> None:
    unet = replace(component("unet", UNET), anchored=(3 * MiB,))
    program = course(Call(0, "unet", ()), bodies=(WORK,), components=(unet,))
    assert held_at_calls(sequential_offload(program)) == [("unet", 3 * MiB)]


def test_a_body_written_into_its_caller_is_streamed_too() -> None:
    inside = (Enter("unet", (8 * MiB,)), Alloc(0, MiB), Exit(), Enter("act", ()), Exit())
    streamed = (
        Enter("unet", (8 * MiB,)),
        Load("", (8 * MiB,)),
        Empty(),
        Alloc(0, MiB),
        Exit(),
        Drop("", copied=False),
        Enter("act", ()),
        Exit(),
    )
    called = sequential_offload(course(Call(0, "", ((0, 0),)), bodies=(body(*inside),)))
    assert told(called.body(STREAMED)) == told(streamed)
    outermost = sequential_offload(course(*inside))
    assert told(outermost.recordings[outermost.course].events) == told(streamed)


def test_sequential_offload_leaves_excluded_components_on_the_card() -> None:
    work = replace(WORK, own=(7 * MiB,))
    program = sequential_offload(pipeline(*calls("unet", "safety_checker"), work=work))
    phases = {phase.name: phase.peak.weights for phase in Cost(device()).phases(program)}
    assert phases == {"start": SAFETY, "unet": SAFETY + 7 * MiB, "safety_checker": SAFETY}


def test_casting_under_sequential_offload_touches_excluded_components_only() -> None:
    casts = Cast("vae", (2 * VAE,)), Cast("safety_checker", (2 * SAFETY,))
    program = sequential_offload(pipeline(*casts, *calls("vae.decode")))
    found = [event for event in program.recordings[program.course].events if isinstance(event, Cast)]
    assert found == [casts[1]]


@given(programs())
def test_offloading_changes_nothing_but_where_weights_are(program: Program) -> None:
    def bare(placed: Program) -> list[tuple[str, str]]:
        return [
            (name, event) for name, event in _written_out(placed) if not event.startswith((*MOVES, "Enter", "Exit"))
        ]

    for placement in (resident, model_offload, sequential_offload):
        assert bare(placement(program)) == bare(program)


def _written_out(program: Program) -> list[tuple[str, str]]:
    """The course with every call written out, by the names of what runs."""
    found: list[tuple[str, str]] = []

    def follow(recording: int) -> None:
        for event in program.body(recording):
            if isinstance(event, Call):
                follow(event.recording)
            else:
                found.append((program.recordings[recording % STREAMED].name, repr(event)))

    follow(program.course)
    return found


def test_nothing_is_moved_that_is_not_called() -> None:
    assert held_at_calls(model_offload(pipeline(Run(0), *calls("unet")))) == [("unet", SAFETY + UNET)]


def test_what_is_taken_out_of_a_handed_list_stays_until_the_list_is_made_anew() -> None:
    """The caller's own list holds it; its number is given out again meanwhile, so the later buffer gets another."""
    course = (
        Alloc(0, 100), Alloc(1, 10), Enter("unet", ()), Free(0), Alloc(0, 7), Free(1), Call(0, "conv", ((0, 1),)),
        Free(1), Exit(), Free(0), Alloc(0, 90), Enter("unet", ()), Free(0), Exit(), Alloc(0, 3), Free(0),
    )  # fmt: skip
    assert lent(course, {"unet"}) == (
        Alloc(0, 100), Alloc(1, 10), Enter("unet", ()), Alloc(2, 7), Call(0, "conv", ((0, 3),)), Free(3), Exit(),
        Free(2), Alloc(4, 90), Free(0), Free(1), Enter("unet", ()), Exit(), Alloc(0, 3), Free(0), Free(4),
    )  # fmt: skip
    assert lent(course, {"vae"}) == course


def test_no_list_outlives_a_call_of_the_pipeline() -> None:
    once = (Alloc(0, 100), Enter("unet", ()), Free(0), Exit(), Alloc(0, 3))
    assert lent((*once, Again(), *once), {"unet"}) == (
        Alloc(0, 100), Enter("unet", ()), Exit(), Alloc(1, 3), Free(0), Again(),
        Alloc(0, 100), Enter("unet", ()), Exit(), Alloc(2, 3), Free(0),
    )  # fmt: skip


def test_what_survives_under_another_number_ends_under_it() -> None:
    course = (
        Alloc(0, 100), Enter("unet", ()), Free(0), Alloc(0, 7), Exit(), Enter("unet", ()), Free(0), Alloc(0, 5), Exit(),
        Free(0),
    )  # fmt: skip
    assert lent(course, {"unet"}) == (
        Alloc(0, 100), Enter("unet", ()), Alloc(1, 7), Exit(), Free(0), Enter("unet", ()), Alloc(0, 5), Exit(), Free(0),
        Free(1),
    )  # fmt: skip


def test_what_a_remembering_component_kept_itself_was_in_no_list() -> None:
    course = (
        Alloc(0, 100), Call(0, "unet", ((0, 1), (1, 2))), Free(1), Enter("unet", ()), Free(2), Free(0), Alloc(0, 5),
        Exit(), Enter("unet", ()), Free(0), Alloc(0, 5), Exit(), Free(0),
    )  # fmt: skip
    assert lent(course, {"unet"}, remembering=True) == (
        Alloc(0, 100), Call(0, "unet", ((0, 1), (1, 2))), Free(1), Enter("unet", ()), Free(2), Alloc(3, 5), Exit(),
        Free(0), Enter("unet", ()), Free(3), Alloc(0, 5), Exit(), Free(0),
    )  # fmt: skip


@st.composite
def handed(draw: st.DrawFn) -> tuple[Event, ...]:
    """A course as it is recorded: buffers take the lowest free number and end anywhere; components are never nested."""
    events: list[Event] = []
    alive: list[int] = []
    inside = False
    for size, what in draw(st.lists(st.tuples(st.integers(1, 99), st.sampled_from("abffec")), max_size=40)):
        number = next(n for n in range(99) if n not in alive)
        if what == "e":
            events.append(Exit() if inside else Enter(draw(st.sampled_from(("unet", "vae.decode"))), ()))
            inside = not inside
        elif what == "f" and alive:
            events.append(Free(alive.pop(size % len(alive))))
        elif what in "abc":
            events.append(Call(size, "conv", ((0, number),)) if what == "c" else Alloc(number, size))
            alive.append(number)
    return (*events, *([Exit()] if inside else []), *map(Free, alive))


def held_after_each(events: tuple[Event, ...]) -> Iterator[tuple[Event, list[int]]]:
    """Each event with the sizes of what is alive then; a call's survivor counts as the number of its body."""
    alive: dict[int, int] = {}
    for event in events:
        if isinstance(event, Alloc):
            assert event.buffer not in alive
            alive[event.buffer] = event.size
        elif isinstance(event, Call):
            assert not alive.keys() & {outer for _, outer in event.kept}
            alive.update((outer, event.recording) for _, outer in event.kept)
        elif isinstance(event, Free):
            del alive[event.buffer]
        yield event, sorted(alive.values())


@settings(max_examples=300)
@given(handed())
def test_lists_that_are_lent_only_end_later(events: tuple[Event, ...]) -> None:
    before, after = list(held_after_each(events)), list(held_after_each(lent(events, {"unet"})))
    assert len(before) == len(after)
    assert [held for event, held in before if event == Enter("unet", ())] == [
        held for event, held in after if event == Enter("unet", ())
    ]
    whole, less = ([sum(held) for event, held in each if not isinstance(event, Free)] for each in (after, before))
    assert all(a >= b for a, b in zip(whole, less, strict=True))
    assert (after[-1][1] if after else []) == []
