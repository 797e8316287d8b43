"""Hypothesis strategies for the pure core."""

from __future__ import annotations

from hypothesis import strategies as st

from planner.solve import Offer, Problem

EIGHTHS = st.integers(0, 40).map(lambda n: n / 8)
"""Seconds whose sums are exact in floating point."""


@st.composite
def groups(draw: st.DrawFn, phases: int, *, most: int = 5) -> tuple[Offer, ...]:
    """Offers of one group, with ties and dominated ones among them."""
    row = st.integers(0, 12)
    return tuple(
        Offer(
            name=name,
            seconds=draw(EIGHTHS),
            memory=tuple(draw(st.lists(row, min_size=phases, max_size=phases))),
            host=draw(st.integers(0, 4)),
            fidelity=draw(st.integers(0, 2)),
            changes=draw(st.integers(0, 2)),
        )
        for name in draw(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=most, unique=True))
    )


@st.composite
def scenes(draw: st.DrawFn, *, most: int = 3) -> tuple[Problem, ...]:
    """One to `most` problems under the same limits, from plainly too tight to slack."""
    phases = draw(st.integers(1, 4))
    capacity = draw(st.integers(0, 50))
    host = draw(st.none() | st.integers(0, 12))
    return tuple(
        Problem(
            label=f"scene {index}",
            groups=tuple(draw(st.lists(groups(phases), max_size=4))),
            capacity=capacity,
            host=host,
            base=tuple(draw(st.lists(st.integers(0, 5), min_size=phases, max_size=phases))),
            seconds=draw(EIGHTHS),
        )
        for index in range(draw(st.integers(1, most)))
    )
