"""What the mover fetches, whatever runs in whatever order: each unit is there when it runs, two at most, none stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.events import Await, Drop, Fetch
from planner.streaming import Begin, End, ahead, serial

ORDERS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)
"""Units by the order in which they run; an embedding may run twice in a row, a shared block here and there."""


@pytest.mark.parametrize("schedule", [serial, ahead])
@given(order=ORDERS, staying=st.sets(st.sampled_from("abcd"), max_size=3))
def test_what_runs_is_there_and_nothing_else_for_long(schedule: object, order: list[str], staying: set[str]) -> None:
    assert callable(schedule)
    events = [event for path in order for event in (Begin(path), path, End(path))]
    away = dict.fromkeys(set(order) - staying, 10)
    aboard, due = set[str](), set[str]()
    for event in schedule(events, away):
        match event:
            case Fetch(path, sizes):
                assert path not in aboard
                assert sizes == (10,)
                aboard.add(path)
                due.add(path)
                assert len(aboard) <= 2
            case Await(path):
                due.remove(path)
            case Drop(path):
                assert path not in due
                aboard.remove(path)
            case str(path):
                assert path in staying or (path in aboard and path not in due)
    assert not aboard
    assert not due


def test_a_unit_that_runs_twice_in_a_row_is_fetched_twice() -> None:
    """What was fetched for the one after it leaves, since the mover did not expect the second turn."""
    events = [event for path in "aab" for event in (Begin(path), End(path))]
    fetched = [event.key for event in ahead(events, {"a": 1, "b": 1}) if isinstance(event, Fetch)]
    assert fetched == ["a", "b", "a", "b"]
