"""A component worked out by the host, event by event and in sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reference import CUBLAS, MiB, body, course
from techniques.programs import device

from planner import host
from planner.aside import calls_of, work, worked_aside
from planner.cost import Cost
from planner.events import Alloc, Aside, Call, Cast, Enter, Exit, Free, Load, Run
from planner.kernels import Attention, Conv
from planner.offload import resident
from planner.pace import CORE
from planner.program import Component, Program

CONV = Conv(
    dtype="float16", input=(1, 4, 8, 8), weight=(8, 4, 3, 3), output=(1, 8, 8, 8), stride=(1, 1), padding=(1, 1)
)
FLOPS = 2 * 8 * 64 * 4 * 9
REORDERED = (4 * 64 + 8 * 4 * 9 + 8 * 64) * 2
VAE = Component(name="vae", kind="Vae", dtype="float16", weights=(3 * MiB,), traits=frozenset({"autoencoder"}))
UNET = Component(name="unet", kind="Unet", dtype="float16", weights=(5 * MiB,))
DECODE = body(Alloc(0, 4 * MiB), Run(0), Alloc(1, MiB), Free(0))
BEFORE, AFTER = (Alloc(0, MiB), Call(0, "unet", ())), (Free(0), Free(7))
INLINE = (Enter("vae.decode", ()), Alloc(7, MiB), Alloc(8, 4 * MiB), Run(0), Free(8), Free(0), Exit())


def program(*events: object, vae: Component = VAE) -> Program:
    bodies = (body(Alloc(0, MiB), Free(0)), DECODE)
    return course(*events, bodies=bodies, components=(UNET, vae), kernels=(CONV,))  # type: ignore[arg-type]


CALLED = program(*BEFORE, Call(1, "vae.decode", ((1, 7),)), *AFTER)
WRITTEN = program(*BEFORE, *INLINE, Free(7))


def test_the_card_sees_what_a_call_takes_and_returns() -> None:
    seen = Enter("vae.decode", ()), Aside(FLOPS, MiB), Alloc(7, MiB)
    assert worked_aside(CALLED, "vae").events == (*BEFORE, *seen, Exit(), *AFTER)
    assert worked_aside(WRITTEN, "vae").events == (*BEFORE, *seen, Free(0), Exit(), Free(7))


@pytest.mark.parametrize(("before", "extra"), [(CALLED, 0), (WRITTEN, MiB)])
def test_the_host_holds_the_weights_twice_and_the_decode_in_single_precision(before: Program, extra: int) -> None:
    peak = max(5 * MiB, 4 * MiB + extra + REORDERED)
    assert worked_aside(before, "vae").waiting == 3 * MiB + 2 * 3 * MiB + 2 * peak


def test_weights_in_single_precision_need_no_copy() -> None:
    single = program(*CALLED.events, vae=replace(VAE, dtype="float32"))
    assert worked_aside(single, "vae").waiting == 3 * MiB + 5 * MiB


def test_a_cast_before_the_call_happens_on_the_host() -> None:
    cast = program(Cast("vae", (6 * MiB,)), *CALLED.events)
    there = worked_aside(cast, "vae")
    assert there.events == worked_aside(CALLED, "vae").events
    assert there.waiting == 3 * MiB + 2 * 3 * MiB + 5 * MiB


def test_nothing_of_it_is_loaded_and_the_card_waits() -> None:
    there, card = resident(worked_aside(CALLED, "vae")), device()
    assert [event for event in there.events if isinstance(event, Load)] == [Load("vae", ()), Load("unet", (5 * MiB,))]
    _, _, decode = Cost(card).phases(there)
    assert decode.name == "vae.decode"
    assert decode.peak.total == CUBLAS + 5 * MiB + 2 * MiB
    assert decode.seconds == pytest.approx(FLOPS / (host.cores() * CORE) + MiB / card.pageable_rate)


def test_what_kernels_do_and_reorder() -> None:
    seen = Attention(dtype="float16", batch=2, heads=3, queries=5, keys=7, head_size=8, value_size=4)
    assert work(CONV) == (FLOPS, REORDERED)
    assert work(seen) == (2 * 2 * 3 * 5 * 7 * 12, 0)


def test_how_a_component_is_called() -> None:
    more = program(Call(1, "vae.encode", ()), *CALLED.events)
    assert (set(calls_of(more, "vae")), set(calls_of(CALLED, "unet"))) == ({"encode", "decode"}, {""})
