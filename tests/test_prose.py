"""Prose: lines end where people expect, and never between a number and its unit."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from planner.prose import Prose, tied
from planner.units import format_bytes, format_flops, format_seconds

amounts = st.one_of(
    st.integers(0, 10**15).map(format_bytes),
    st.floats(0, 1e6).map(format_seconds),
    st.floats(1e9, 1e17).map(format_flops),
)


def lines(prose: Prose, width: int) -> list[str]:
    page = Console(file=io.StringIO(), width=width, color_system=None)
    page.print(prose)
    assert isinstance(page.file, io.StringIO)
    return page.file.getvalue().splitlines()


@given(st.lists(st.sampled_from(("needs", "over", "in", "vae.decode;")) | amounts, min_size=1), st.integers(16, 90))
def test_amounts_are_whole_and_no_word_is_lost(words: list[str], width: int) -> None:
    shown = lines(Prose(" ".join(words)), width)
    assert " ".join(shown) == " ".join(words)
    assert all(len(line) <= width for line in shown)
    assert " ".join(tied(line) for line in shown) == tied(" ".join(words)), "a line ends within an amount"


@pytest.mark.parametrize(
    ("rate", "said"), [(40.6e12, "40.6 TFLOP/s"), (2.25e15, "2.25 PFLOP/s"), (999.6e12, "1.00 PFLOP/s")]
)
def test_rates_have_three_digits(rate: float, said: str) -> None:
    assert format_flops(rate) == said


def test_words_longer_than_a_line_are_folded() -> None:
    assert lines(Prose("a" * 30), 20) == ["a" * 20, "a" * 10]
