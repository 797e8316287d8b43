"""A study's last resort: expandable segments, where the bytes would fit and their segments do not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import solve, study
from planner.cards import card
from planner.choose import NothingFits
from planner.pricing import Pricer
from planner.request import Request
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
