"""Calibrations by the clock of a CPU, their file, and what they change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner import cards
from planner.calibrate import Bench, calibrate
from planner.calibration import Calibration, read, write
from planner.errors import BadRequest
from planner.pace import ISSUES, Pace
from planner.program import Matmul, Plain

CARD = cards.card("rtx-3070")
MADE = Calibration(
    device_name=CARD.name, made="2026-01-01 with torch 2.14", pinned_rate=20e9, pageable_rate=6e9, return_rate=3e9,
    issue=9e-6, products=0.5, convolutions=1.5, attentions=1.25, traffic=2.0, singles=1.0, context=300 * 2**20,
)  # fmt: skip


def test_a_card_is_measured_by_the_clock() -> None:
    """A CPU in the card's place, with small sizes: slower than the card would be, and every figure is there."""
    made = calibrate(CARD, Bench(place="cpu", scale=32, least=0.01))
    assert made.device_name == CARD.name
    for name in ("products", "singles", "convolutions", "attentions", "traffic"):
        assert 0 < getattr(made, name) < 100, name
    assert 1e6 < made.pageable_rate < 1e12
    assert 1e6 < made.return_rate < 1e12
    assert 1e-7 < made.issue < 1
    assert (made.pinned_rate, made.context) == (0, 0), "a CPU has neither"


def test_a_calibration_is_kept_by_name(tmp_path: Path) -> None:
    file = write(MADE, tmp_path)
    assert file.name == "nvidia-geforce-rtx-3070.toml"
    assert read(CARD.name, tmp_path) == MADE
    assert read("NVIDIA GeForce RTX 3080", tmp_path) is None
    file.write_text("products = 'many'\n")
    with pytest.raises(BadRequest, match="is no calibration"):
        read(CARD.name, tmp_path)


def test_what_was_measured_takes_the_place_of_what_was_assumed() -> None:
    card = MADE.applied(CARD)
    product, add = Matmul("float16", 10**13, 1), Plain("add", 0, 10**10)
    tail = Pace(card).reached.tail
    assert Pace(card).kernel(product) - tail == pytest.approx(2 * (Pace(CARD).kernel(product) - tail))
    assert Pace(card).kernel(add) - tail == pytest.approx((Pace(CARD).kernel(add) - tail) / 2)
    assert Pace(card).issue(add) == 9e-6 * ISSUES[Plain]
    assert Pace(card).load(6 * 10**9, 0, whole=True) == pytest.approx(1.0)
    assert Pace(card).unload(6 * 10**9) == pytest.approx(2.0)
    assert card.context == 300 * 2**20
    assert "calibrated" in card.source


def test_what_was_not_measured_stays() -> None:
    partly = replace(MADE, products=0.0, context=0, pinned_rate=0.0)
    card = partly.applied(CARD)
    assert (card.products, card.context, card.pinned_rate) == (1.0, CARD.context, CARD.pinned_rate)


def test_cards_by_name_are_as_they_were_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("planner.calibration.folder", lambda: tmp_path)
    write(MADE, tmp_path)
    assert cards.card("rtx-3070").pinned_rate == 20e9
    assert cards.card("rtx-3080-10gb") == next(c.device for c in cards.catalogue() if c.slug == "rtx-3080-10gb")
