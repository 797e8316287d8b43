"""The smallest budget: a plan for it, and none for 2 % less."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN

from planner.minimum import smallest_of
from planner.plan import Plan
from planner.reasons import HOST, Shortage
from planner.study import Study
from planner.surveys import TOLERANCE

CONTEXT = PLAN.device.context


@dataclass
class Desk:
    """A study in which plans fit from `least` bytes on; what it says would do is more by a factor."""

    least: int
    generous: float = 1.0
    phase: str = "vae.decode"
    asked: list[int] = field(default_factory=list)

    def attempt(self, _: object, *, budget: int, host: int | None) -> Plan | Shortage:
        assert host is None
        self.asked.append(budget)
        if budget >= self.least:
            return replace(PLAN, budget=budget)
        enough = budget if self.phase == HOST else int(max(self.least * self.generous, budget + 1))
        return Shortage(phase=self.phase, over=1, smallest_budget=enough)

    def plan(self, *_: object, **__: object) -> NoReturn:
        raise LookupError("refused")


def found(desk: Desk) -> Any:
    return smallest_of(cast("Study", desk), PLAN.device)


@given(st.integers(CONTEXT + 2, 100 * 10**9), st.floats(1, 4))
def test_it_is_known_to_two_percent(least: int, generous: float) -> None:
    desk = Desk(least, generous)
    answer = found(desk)
    assert answer.below < least <= answer.plan.budget
    assert answer.below >= int(answer.plan.budget * (1 - TOLERANCE)) or answer.below == CONTEXT + 1
    assert answer.phase == "vae.decode"
    assert len(desk.asked) <= 13


def test_nothing_is_asked_twice() -> None:
    desk = Desk(5 * 10**9, 2.0)
    found(desk)
    assert len(set(desk.asked)) == len(desk.asked)


def test_no_budget_helps_where_host_memory_is_short() -> None:
    with pytest.raises(LookupError, match="refused"):
        found(Desk(5 * 10**9, phase=HOST))
