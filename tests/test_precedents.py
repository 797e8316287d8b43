"""Precedents against rehearsals: what is answered from another is what its own would show."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import MiB, body, course, programs
from techniques.programs import device

from planner.events import Alloc, Call, Free, Load, Run
from planner.kernels import Plain
from planner.offload import resident
from planner.precedents import Precedents, Terms, alike
from planner.program import PLACED, Program
from planner.rehearsal import Rehearsal, rehearse

WORK = Call(0, "unet", ())
DECODE = Call(1, "vae.decode", ())
CAP = 40 * MiB


def made(work: int, decode: int, *, placed: int = 0) -> Program:
    """A denoiser and a decode that ask for so many bytes, and a body of the program's own."""
    program = course(WORK, DECODE, bodies=(body(Alloc(0, work), Free(0)), body(Alloc(0, decode), Free(0))))
    if not placed:
        return program
    own = replace(program.recordings[0], events=(Alloc(0, placed), Free(0)))
    return replace(program, placed=(own,)).with_course((WORK._replace(recording=PLACED), DECODE))


def rehearsed(program: Program) -> Rehearsal:
    return rehearse(program, device(), capacity=CAP)


def shared(one: Program, other: Program) -> Rehearsal | None:
    """What is known of the second program once the first was rehearsed."""
    precedents = Precedents()
    precedents.keep(one, Terms(CAP, expandable=False), rehearsed(one))
    return precedents.find(other, Terms(CAP, expandable=False))


def test_what_comes_after_the_failure_makes_no_difference() -> None:
    one, other = made(50 * MiB, 2 * MiB), made(50 * MiB, 2 * MiB).with_course((WORK, DECODE, DECODE))
    assert shared(one, other) == rehearsed(other)
    assert rehearsed(other).failed == "unet"


def test_what_comes_before_it_does() -> None:
    failing = made(2 * MiB, 50 * MiB)
    assert rehearsed(failing).failed == "vae.decode"
    assert shared(failing, failing.with_course((DECODE, WORK))) is None
    assert shared(failing, failing.with_course((WORK, WORK, DECODE))) is None


def test_bodies_of_a_programs_own_are_looked_into() -> None:
    one = made(2 * MiB, 2 * MiB, placed=50 * MiB)
    assert shared(one, made(2 * MiB, 2 * MiB, placed=50 * MiB)) == rehearsed(one)
    assert shared(one, made(2 * MiB, 2 * MiB, placed=30 * MiB)) is None


def test_weights_that_come_first_are_all_compared() -> None:
    """The worst order of loading hangs on those that were never reached, too."""
    one = made(2 * MiB, 2 * MiB).with_course((Load("a", (50 * MiB,)), WORK))
    other = one.with_course((Load("a", (50 * MiB,)), Load("b", (50 * MiB,)), WORK))
    assert rehearsed(one).failed == rehearsed(other).failed == "start"
    assert shared(one, other) is None


def test_events_of_two_kinds_are_never_the_same() -> None:
    kernels = (Plain("add", 1, 1),)
    one = replace(course(Free(0)), kernels=kernels)
    assert not alike(one, one.with_course((Run(0),)), 1)
    assert alike(one, one, 1)


@pytest.mark.parametrize(
    "terms",
    [
        Terms(CAP + MiB, expandable=False), Terms(CAP, expandable=True), Terms(None, expandable=False),
        Terms(CAP, expandable=False, brim=False),
    ],
)  # fmt: skip
def test_other_terms_are_another_question(terms: Terms) -> None:
    one, precedents = made(50 * MiB, 2 * MiB), Precedents()
    precedents.keep(one, Terms(CAP, expandable=False), rehearsed(one))
    assert precedents.find(one, terms) is None


def test_what_never_went_without_runs_alike_with_as_much() -> None:
    one, precedents = made(2 * MiB, 2 * MiB), Precedents()
    seen = rehearsed(one)
    precedents.keep(one, Terms(CAP, expandable=False), seen)
    for capacity in (None, seen.enough, CAP + MiB):
        assert (
            precedents.find(one, Terms(capacity, expandable=False))
            == rehearse(one, device(), capacity=capacity)
            == seen
        )
    assert precedents.find(one, Terms(seen.enough - 1, expandable=False)) is None
    assert precedents.find(one, Terms(CAP, expandable=True)) is None
    assert precedents.find(one, Terms(CAP, expandable=False, brim=False)) is None
    assert precedents.find(made(2 * MiB, 2 * MiB), Terms(CAP, expandable=False)) is None


def test_what_had_to_retry_or_had_no_cap_decides_nothing_but_itself() -> None:
    tight, precedents = made(25 * MiB, 30 * MiB), Precedents()
    seen, free = rehearsed(tight), rehearse(tight, device())
    assert seen.retries
    precedents.keep(tight, Terms(CAP, expandable=False), seen)
    precedents.keep(tight, Terms(None, expandable=False), free)
    assert precedents.find(tight, Terms(CAP, expandable=False)) is seen
    assert precedents.find(tight, Terms(None, expandable=False)) is free
    assert precedents.find(tight, Terms(CAP + 1, expandable=False)) is None
    assert precedents.find(made(25 * MiB, 30 * MiB), Terms(CAP, expandable=False)) is None


@settings(max_examples=150, deadline=None)
@given(programs(), st.integers(10, 120), st.data())
def test_a_shared_refusal_is_what_a_rehearsal_shows(program: Program, mebibytes: int, data: st.DataObject) -> None:
    """The same program with its end cut off or done twice, wherever it is cut."""
    one = resident(program)
    cut = data.draw(st.integers(0, len(one.events)))
    other = one.with_course(one.events[:cut] + one.events[cut:] * 2)
    capacity, precedents = mebibytes * MiB, Precedents()
    precedents.keep(one, Terms(capacity, expandable=False), rehearse(one, device(), capacity=capacity))
    if (known := precedents.find(other, Terms(capacity, expandable=False))) is not None:
        assert known == rehearse(other, device(), capacity=capacity)
