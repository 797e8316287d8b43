"""Answers to forms, on a small call of a shipped pipeline."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from planner.request import Request
from planner.web import answers
from planner.web.desk import OPEN, Desk
from planner.web.form import Form
from planner.web.view import View


@dataclass(frozen=True)
class Stub:
    """In place of a study."""

    request: Request

    def plan(self, device: object) -> None:
        assert device

    def beside(self, other: Stub) -> Stub:
        assert other is not self
        return self

    def keep(self) -> None:
        pass


SMALL = Form(model="sd15", card="rtx-3070", width=64, height=64, steps=2)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("programs"))


def test_what_takes_its_time_is_told_and_a_plan_comes_before_its_details(desk: Desk) -> None:
    heard = list(answers.plans(desk, SMALL))
    told = [each for each in heard if isinstance(each, str)]
    assert told[0] == "Planning sd15: recording 64×64 …"
    first, second = (each for each in heard if isinstance(each, View))
    assert first.verdict == second.verdict
    assert "fits in 8.59 GB" in first.verdict
    assert "Who holds the memory" in second.reasons


def test_a_change_is_answered_within_a_second(desk: Desk) -> None:
    """On a cached program, by the processor's clock: budget, fidelity back and forth."""
    list(answers.plans(desk, SMALL))
    for changed in (replace(SMALL, budget="6GB"), replace(SMALL, budget="80%"), SMALL):
        start = time.process_time()
        assert any(isinstance(each, View) for each in answers.plans(desk, changed))
        assert time.process_time() - start < 1


def test_what_is_wrong_is_answered_and_the_next_form_is_answered_again(desk: Desk) -> None:
    (wrong,) = answers.plans(desk, replace(SMALL, budget="lots"))
    assert isinstance(wrong, View)
    assert "is not a budget" in wrong.verdict
    assert isinstance(list(answers.plans(desk, SMALL))[-1], View)


def test_budgets_grow_and_are_known_the_second_time(desk: Desk) -> None:
    first = list(answers.budgets(desk, SMALL))
    assert len(first) > 2
    assert "searching" in first[0]
    assert "searching" not in first[-1]
    start = time.process_time()
    assert list(answers.budgets(desk, SMALL))[-1] == first[-1]
    assert time.process_time() - start < 0.5


def test_only_the_last_studies_stay_open(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import planner.web.desk as room

    made: list[object] = []
    monkeypatch.setattr(room, "opened", lambda profile, asked, **_: made.append(asked) or Stub(asked))
    fresh = Desk(Path("nowhere"))
    for steps in [*range(1, OPEN + 2), OPEN + 1, 1]:
        fresh.plan(replace(SMALL, steps=steps))
    assert len(made) == OPEN + 2


def test_studies_share_what_was_priced_within_other_budgets(desk: Desk) -> None:
    before = desk.plan(SMALL)
    after = desk.plan(replace(SMALL, budget="5GB"))
    assert (before.budget, after.budget) == (SMALL.device.total, 5 * 10**9)
    assert str(after.request.budget) == "5GB"
