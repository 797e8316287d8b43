"""Answers on disk: the same question is answered from there, another one is not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner import answers, cudnn, study
from planner.answers import Answers
from planner.cards import card
from planner.plan import Plan
from planner.reasons import Shortage
from planner.request import Request
from planner.surveys import frontier_of
from planner.techniques import DEFAULT
from planner.techniques.vae_slicing import VaeSlicing

CARD = card("rtx-3070")
SMALL = Request(height=256, width=256, steps=2)


class Foreign(VaeSlicing):
    """A technique whose code nothing vouches for."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once, without answers."""
    folder = tmp_path_factory.mktemp("programs")
    opened = study.opened("sd15", SMALL, cache=folder)
    opened.plan(CARD, budget=6 * 10**9)
    opened.keep()
    return folder


@pytest.fixture
def opened(recorded: Path, tmp_path: Path) -> study.Study:
    return replace(study.opened("sd15", SMALL, cache=recorded), answers=Answers(tmp_path))


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*_: Any) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(study, "choose", choose)


def again(opened: study.Study) -> study.Study:
    """The same in another process: nothing of it is in memory."""
    return replace(opened, _pricers={}, _recalled={}, _others={})


def test_a_plan_is_read_back_as_it_was_made(opened: study.Study, request: pytest.FixtureRequest) -> None:
    made = opened.plan(CARD, budget=6 * 10**9)
    request.getfixturevalue("no_search")
    assert again(opened).plan(CARD, budget=6 * 10**9) == made
    assert again(opened).attempt(CARD, budget=6 * 10**9) == made


def test_a_shortage_is_read_back_as_it_was_found(opened: study.Study, request: pytest.FixtureRequest) -> None:
    found = opened.attempt(CARD, budget=450 * 10**6)
    assert isinstance(found, Shortage)
    request.getfixturevalue("no_search")
    assert again(opened).attempt(CARD, budget=450 * 10**6) == found


def test_a_frontier_is_read_back_as_it_was_found(opened: study.Study, request: pytest.FixtureRequest) -> None:
    found = frontier_of(opened, CARD, down_to=400 * 10**6)
    request.getfixturevalue("no_search")
    assert frontier_of(again(opened), CARD, down_to=400 * 10**6) == found
    assert len(found.points) > 1


@pytest.mark.parametrize(
    ("device", "budget", "host"),
    [
        (CARD, 7 * 10**9, None),
        (CARD, 6 * 10**9, 10**9),
        (replace(CARD, context=CARD.context + 1), 6 * 10**9, None),
        (replace(CARD, bandwidth=CARD.bandwidth / 2), 6 * 10**9, None),
    ],
)
def test_another_question_is_another_answer(opened: study.Study, device: Any, budget: int, host: int | None) -> None:
    opened.plan(CARD, budget=6 * 10**9)
    assert again(opened)._known(opened.order(device, budget, host)) is None


def test_an_answer_of_other_software_is_none(opened: study.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.plan(CARD, budget=6 * 10**9)
    order = opened.order(CARD, 6 * 10**9)
    assert isinstance(opened._known(order), Plan)
    monkeypatch.setattr(answers, "_stamp", lambda: "a file changed")
    assert opened._known(order) is None


def test_nothing_is_kept_of_techniques_of_others(opened: study.Study, tmp_path: Path) -> None:
    foreign = replace(opened, techniques=(*DEFAULT, Foreign(name="mine")))
    foreign.plan(CARD, budget=6 * 10**9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(cudnn.library() is None, reason="no cuDNN on this machine")
def test_cudnn_is_asked_once(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process reads what it answered, whatever the budget."""
    first = replace(study.opened("sd15", SMALL, cache=recorded), workspaces=Answers(tmp_path))
    cudnn.book.cache_clear()
    made = first.plan(CARD, budget=6 * 10**9)
    first.keep()
    cudnn.book.cache_clear()

    def asked(*_: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(cudnn, "_answer", asked)
    assert replace(again(first), answers=Answers()).plan(CARD, budget=6 * 10**9) == made


def test_what_cannot_be_read_is_worked_out_anew(opened: study.Study, tmp_path: Path) -> None:
    made = opened.plan(CARD, budget=6 * 10**9)
    for file in tmp_path.iterdir():
        file.write_text('{"options": ')
    assert again(opened).plan(CARD, budget=6 * 10**9) == made


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "KEPT", 2)
    kept = Answers(tmp_path)
    for place, question in enumerate("abc"):
        kept.keep({"answer": place}, question)
        os.utime(Answers._file(tmp_path, (question,)), (place, place))
    kept.keep({"answer": 3}, "d")
    assert [kept.find(question) for question in "abcd"] == [None, None, {"answer": 2}, {"answer": 3}]
