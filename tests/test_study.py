"""A study's last resort: expandable segments, where the bytes would fit and their segments do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import solve, study
from planner.cards import card
from planner.choose import NothingFits
from planner.plan import Plan
from planner.pricing import Pricer
from planner.request import Fidelity, Request
from planner.scenes import Limits

CARD = card("rtx-3070")
GB = 10**9


def shortage(refused: int) -> NothingFits:
    choice: Any = SimpleNamespace(memory=(5 * GB,))
    leanest: Any = SimpleNamespace(phases=(SimpleNamespace(name="unet"),))
    return NothingFits(leanest, solve.NoSolution(choice, over=0, host=0, refused=refused))


@pytest.mark.parametrize(
    ("refused", "growing_fits", "wanted", "tries"),
    [
        (1, True, Request(), [(), ("expandable_segments",)]),
        (1, False, Request(), [(), ("expandable_segments",)]),
        (0, True, Request(), [()]),
        (1, True, Request(without=("expandable_segments",)), [()]),
        (1, False, Request(use=("expandable_segments",)), [("expandable_segments",)]),
    ],
)
def test_expandable_segments_are_tried_last(
    refused: int,
    growing_fits: bool,
    wanted: Request,
    tries: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, ...]] = []

    def choose(pricer: Pricer, limits: Limits) -> Any:
        use = pricer._request.use
        asked.append(use)
        if use and growing_fits:
            return limits
        raise shortage(refused)

    monkeypatch.setattr(study, "choose", choose)
    opened = study.opened("sd15", wanted, cache=tmp_path)
    if len(tries) > 1 and growing_fits:
        assert opened.choice(CARD, 8 * GB) == Limits(capacity=8 * GB - CARD.context, host=None)
    else:
        with pytest.raises(NothingFits) as nothing:
            opened.choice(CARD, 8 * GB)
        assert nothing.value.evidence.refused == refused
    assert asked == tries


def test_what_is_known_serves_other_requests_that_are_recorded_alike(tmp_path: Path) -> None:
    """Fidelity, limits and techniques named shape no program: a plan is the same as from nothing, and sooner found."""
    call = {"height": 512, "width": 512, "steps": 2}
    first = study.opened("sd15", Request(**call), cache=tmp_path)
    first.plan(CARD, budget=3 * GB)
    first.keep()
    for changed in ({"fidelity": Fidelity.LOSSY}, {"plain": True}, {"without": ("streaming",)}):
        wanted = Request(**call, **changed)
        own = study.opened("sd15", wanted, cache=tmp_path)
        beside = own.beside(first)
        assert beside.programs is first.programs
        assert beside.pricer(CARD).priced >= first.pricer(CARD).priced > own.pricer(CARD).priced == 0
        order = own.order(CARD, 3 * GB)
        plans = [replace(found, explored=0) for s in (own, beside) if isinstance(found := s._search(order), Plan)]
        assert len(plans) == 2
        assert plans[0] == plans[1]
    for other in ({"height": 768}, {"calls": 8}):
        unlike = study.opened("sd15", Request(**call | other), cache=tmp_path)
        assert unlike.beside(first) is unlike
