"""Cycles are looked for seldom while plans are worked out, and as before afterwards."""

from __future__ import annotations

import gc

import pytest

from planner.collector import SELDOM, USUAL, collecting


def test_recordings_inside_plans_keep_to_the_usual() -> None:
    before = gc.get_threshold()
    with collecting(SELDOM):
        with collecting(USUAL):
            assert gc.get_threshold() == USUAL
        assert gc.get_threshold() == SELDOM
    assert gc.get_threshold() == before


def test_an_error_changes_nothing() -> None:
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="no plan"), collecting(SELDOM):
        raise ValueError("no plan")
    assert gc.get_threshold() == before
