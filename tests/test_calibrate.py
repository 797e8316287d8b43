"""Calibrations by the clock of a CPU, their file, and what they change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN

from planner import cards, cudnn
from planner.calibrate import Bench, calibrate
from planner.calibration import Calibration, Scratch, read, write
from planner.errors import BadRequest
from planner.kernels import Conv, Matmul, Plain
from planner.pace import ISSUES, Pace
from planner.plan import Plan
from planner.samples import SAMPLES, Seen, summed
from planner.workspace import engines, foreseen, kind

CARD = cards.card("rtx-3070")
MADE = Calibration(
    device_name=CARD.name, made="2026-01-01 with torch 2.14", pinned_rate=20e9, pageable_rate=6e9, return_rate=3e9,
    issue=9e-6, products=0.5, convolutions=1.5, attentions=1.25, traffic=2.0, singles=1.0, context=300 * 2**20,
    pinned_return_rate=19e9,
    scratch=(
        Scratch(kind="float16 2d", where="a U-Net", foreseen=10, measured=8, maps=0.0, weight=0.0),
        Scratch(kind="float32 2d", where="a U-Net", foreseen=10, measured=20, maps=0.25, weight=2.0),
    ),
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
    assert (made.pinned_rate, made.pinned_return_rate, made.context, made.scratch) == (0, 0, 0, ()), "a CPU has none"


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


def test_scratch_beyond_what_is_foreseen_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By every engine of that kind; a kind that took less than foreseen is left as it was."""
    monkeypatch.setattr(cudnn, "library", lambda: None)
    card = MADE.applied(CARD)
    half, single = (
        Conv(dtype, (1, 256, 64, 64), (128, 256, 3, 3), (1, 128, 64, 64), (1, 1), padding=(1, 1))
        for dtype in ("float16", "float32")
    )
    assert engines(half, card, every=True) == foreseen(half, CARD, every=True)
    more = 0.25 * (256 + 128) * 64 * 64 * 4 + 2 * 128 * 256 * 9 * 4
    assert engines(single, card, every=True) == tuple(each + more for each in foreseen(single, CARD, every=True))
    depthwise = Conv("float32", (1, 8, 64, 64), (8, 1, 3, 3), (1, 8, 64, 64), (1, 1), groups=8)
    assert engines(depthwise, card) == (0,), "no convolution of cuDNN's"


@given(st.lists(st.tuples(*[st.integers(1, 2**30)] * 2, *[st.integers(0, 2**30)] * 2), min_size=1, max_size=5))
def test_what_is_added_covers_every_sample(rows: list[tuple[int, int, int, int]]) -> None:
    seen = [Seen("", *row) for row in rows]
    kept = summed("float16 2d", seen)
    for each in seen:
        assert each.foreseen + kept.maps * each.maps + kept.weight * each.weight >= each.taken * (1 - 1e-9)
    assert kept.beyond == any(each.taken > each.foreseen for each in seen)


def test_what_grows_with_weights_is_not_charged_to_pictures() -> None:
    """Winograd's weights on an older card: 2.8 w, and nothing of the pictures."""
    small, large = Seen("small", 5, 60, 0, 168), Seen("large", 5000, 2, 10, 10)
    assert summed("float32 2d", [small, large]).maps == 0
    assert summed("float32 2d", [small, large]).weight == pytest.approx(2.8)


def test_samples_are_of_every_kind_that_plans_have() -> None:
    kinds = {kind(sample.conv("float16", last=last)) for sample in SAMPLES for last in (False, True)}
    for plain in ("float16 2d", "float16 2d pointwise"):
        assert {plain, f"{plain} channels-last"} <= kinds
    assert "float16 3d" in kinds
    assert SAMPLES[6].conv("float16", last=False).output == (2, 320, 32, 32)


def test_a_plan_keeps_the_card_it_was_made_for() -> None:
    made = replace(PLAN, device=MADE.applied(CARD))
    assert Plan.from_json(json.dumps(made.to_json())) == made
    assert MADE.applied(CARD).excess


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
