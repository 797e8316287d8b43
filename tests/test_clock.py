"""Host and card against an event-by-event simulation, and what cannot be otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.clock import AHEAD, Clock, Span, kernel

SECONDS = st.floats(0, 10)
STEPS = st.lists(st.one_of(st.tuples(SECONDS, SECONDS), SECONDS), max_size=30)
"""Kernels as (host, card), and copies for which both wait."""


def span_of(steps: list[tuple[float, float] | float]) -> Span:
    clock = Clock()
    for step in steps:
        if isinstance(step, tuple):
            clock.pass_(kernel(*step))
        else:
            clock.wait(step)
    return clock.span


def simulated(steps: list[tuple[float, float] | float]) -> float:
    host = card = 0.0
    for step in steps:
        if isinstance(step, tuple):
            host += step[0]
            card = max(card, host) + step[1]
        else:
            host = card = max(host, card) + step
    return max(host, card)


@given(STEPS)
def test_equals_a_simulation(steps: list[tuple[float, float] | float]) -> None:
    assert span_of(steps).seconds == pytest.approx(simulated(steps))


@given(STEPS, STEPS, STEPS)
def test_bodies_compose(first: list[object], second: list[object], third: list[object]) -> None:
    """Whatever passed before and passes after, a body worked out on its own moves both clocks as its events would."""
    clock = Clock()
    for part in (first, second, third):
        clock.pass_(span_of(part))  # type: ignore[arg-type]
    assert clock.span.seconds == pytest.approx(simulated([*first, *second, *third]))  # type: ignore[list-item]


def test_a_card_that_is_kept_busy_hides_the_host() -> None:
    assert span_of([(1.0, 3.0)] * 10).seconds == 31.0
    assert span_of([(3.0, 1.0)] * 10).seconds == 31.0


def test_the_host_stops_where_too_many_launches_wait() -> None:
    """Of a decode's seams only the last thousand or so launches hide behind its convolutions."""
    clock = Clock()
    clock.pass_(kernel(0.0, 100.0))
    for _ in range(2 * AHEAD):
        clock.pass_(kernel(0.01, 0.0))
    assert clock.span.seconds == pytest.approx(100.0 + AHEAD * 0.01)
