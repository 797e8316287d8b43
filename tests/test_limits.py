"""The search for the last step that fits: right whatever the need looks like, and quick where it grows evenly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadRequest
from planner.limits import EDGE, FRAMES, MOST, Growth, Kind, Look, guess, last_fitting
from planner.request import Request

SIZE = Growth(kind="size", request=Request(height=1024, width=1536))
GROWTHS = (
    SIZE,
    Growth(kind="batch", request=Request(images=3)),
    Growth(kind="frames", request=Request(frames=81, height=480, width=832)),
)


def looks(need: Callable[[int], float], capacity: int, tried: list[int]) -> Callable[[int], Look]:
    def look(step: int) -> Look:
        tried.append(step)
        return Look(fits=need(step) <= capacity, needs=round(need(step)))

    return look


@given(
    growth=st.sampled_from(GROWTHS),
    steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    base=st.integers(1, 10**10),
    capacity=st.integers(1, 2 * 10**10),
)
def test_it_finds_what_trying_every_step_finds(growth: Growth, steps: list[int], base: int, capacity: int) -> None:
    def need(step: int) -> float:  # grows in jumps anywhere, and evenly beyond them
        return base + sum(steps[:step]) + 10**8 * max(step - len(steps), 0)

    best = max((n for n in range(1, MOST[growth.kind] + 1) if need(n) <= capacity), default=0)
    tried: list[int] = []
    assert last_fitting(looks(need, capacity, tried), growth, capacity, {}) == best
    assert len(tried) == len(set(tried)), "no step is looked at twice"
    assert len(tried) <= 18


@pytest.mark.parametrize("growth", GROWTHS, ids=lambda growth: growth.kind)
@pytest.mark.parametrize("capacity", [3 * 10**9, 8 * 10**9, 24 * 10**9])
def test_even_growth_takes_few_looks(growth: Growth, capacity: int) -> None:
    scale = 6 * 10**9 / growth.load(growth.now)
    tried: list[int] = []
    last_fitting(looks(lambda n: 2 * 10**9 + scale * growth.load(n), capacity, tried), growth, capacity, {})
    assert len(tried) <= 5, tried


def test_what_is_known_is_not_looked_at_again() -> None:
    tried: list[int] = []
    known = {SIZE.now: Look(fits=False, needs=9 * 10**9)}
    last_fitting(looks(lambda n: 10**7 * n * n, 10**9, tried), SIZE, 10**9, known)
    assert SIZE.now not in tried
    assert set(tried) < set(known)


@pytest.mark.parametrize("kind", ["size", "batch", "frames"])
def test_the_first_guess_is_a_step_however_short_memory_is(kind: Kind) -> None:
    growth = Growth(kind=kind, request=Request(height=512, width=512, frames=33))
    for fits, needs in ((False, 10**12), (True, 1)):
        step = guess(growth, 10**6, {growth.now: Look(fits, needs)}, 0, MOST[kind] + 1)
        assert step == (MOST[kind] if fits else 1)


def test_sizes_keep_their_shape() -> None:
    for step in range(1, MOST["size"] + 1):
        request = SIZE.at(step)
        assert (request.width, request.height) == (step * EDGE, max(round(step * 2 / 3), 1) * EDGE)
    assert SIZE.at(SIZE.now) == SIZE.request


def test_frames_are_one_more_than_what_autoencoders_compress() -> None:
    frames = GROWTHS[2]
    assert frames.at(frames.now).frames == 81
    assert all((frames.at(step).frames or 0) % FRAMES == 1 for step in range(1, 20))


def test_what_cannot_grow_is_refused() -> None:
    with pytest.raises(BadRequest, match="no frames"):
        Growth(kind="frames", request=Request(height=512, width=512))
    with pytest.raises(BadRequest, match="no height and width"):
        Growth(kind="size", request=Request(height=512))
