"""Tables as people see them, at 80 and at 120 columns."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from plans import PLAN, SPLIT
from rich.cells import cell_len
from rich.console import Console, RenderableType

from planner import tables
from planner.calibration import Calibration, Scratch
from planner.cards import card
from planner.census import Count, Holding
from planner.reasons import Shortage
from planner.surveys import Anatomy, Frontier, Largest, Point, Row
from planner.techniques.base import Option

STREAMED = Option(technique="streaming", component="text_encoder", value="0/15-until-unet")
OTHER = replace(PLAN, options=(*PLAN.options, STREAMED, SPLIT))
SHORTAGE = Shortage(phase="vae.decode", over=9_570_000_000, smallest_budget=13_570_000_000)


def page(parts: object, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False)
    for part in parts:  # type: ignore[attr-defined]
        shown: RenderableType = part
        console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(name: str, price: float | None = None, **changes: object) -> Row:
    given = {"device": card(name), "budget": 4_000_000_000, "plan": PLAN, "shortage": None, "price": price}
    return Row(**given | changes)  # type: ignore[arg-type]


ROWS = (
    row("rtx-3080-10gb", 0.002),
    row("rtx-3080-12gb", 0.0036, plan=OTHER),
    row("rtx-3070", plan=None, shortage=SHORTAGE),
    row("t4", 0.01234),
)


@pytest.mark.parametrize("width", [80, 120])
def test_comparisons_are_whole_at_any_width(width: int) -> None:
    text = page(tables.comparison(ROWS, width), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for word in ("RTX 3080, 10.7 GB", "RTX 3080, 12.9 GB", "RTX 3070 ", "Tesla T4", "0.00200", "0.00360", "0.0123"):
        assert word in text
    for option in (*PLAN.options, STREAMED):
        if not option.neutral:
            assert tables.snippet.spoken(option) in text, "names of options are never cut"
    assert "9.57 GB over" in text


def test_narrow_comparisons_name_each_combination_once() -> None:
    text = page(tables.comparison(ROWS, 80), 80)
    assert text.count("vae_tiling=512") == 2
    assert re.search(r"^1  .*vae_tiling=512", text, re.MULTILINE)
    assert re.search(r"RTX 3080, 12.9 GB .* 2 *$", text, re.MULTILINE)


def test_holders_below_half_a_percent_are_added_up() -> None:
    sizes = (900, 94, 3, 2, 1)
    holdings = tuple(
        Holding(kind="weights", component="unet", block="", op="", bytes=size, tensors=1) for size in sizes
    )
    count = Count(phase="unet", peak=1000, at="unet.conv", holdings=holdings)
    found = Anatomy(plan=PLAN, counts=(count,), timeline=(), steps=())
    lines = page(tables.anatomy(found, None, 80), 80).splitlines()
    assert any(line.split()[-2:] == ["3", "more"] for line in lines)
    assert any("6 B" in line and "1%" in line for line in lines)
    assert not any(" 0%" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_frontiers_mark_what_the_card_lacks(width: int) -> None:
    points = [Point(budget=n * 10**9, seconds=60.0 / n, options=OTHER.options) for n in (2, 4, 12)]
    found = Frontier(
        model="sd15",
        request=PLAN.request,
        device=PLAN.device,
        points=tuple(points),
        bare=replace(points[2], options=()),
    )
    text = page(tables.frontier(found, width), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for word in ("2.00 GB", "30.0 s", "12.0 GB", "The card has 8.59 GB", "streaming=text_encoder:0/15-until-unet"):
        assert word in text


def test_the_largest_says_what_stops_the_next_step() -> None:
    bigger = replace(PLAN.request, width=3904)
    text = page(tables.largest(Largest(kind="size", plan=PLAN, next=bigger, shortage=SHORTAGE)), 80)
    assert "3840×2224" in text
    assert "3904×2224 would be 9.57 GB over in vae.decode." in text
    assert "no limit was met" in page(tables.largest(Largest(kind="size", plan=PLAN, next=None, shortage=None)), 80)


def test_a_calibration_is_shown_with_what_was_foreseen() -> None:
    less = Scratch(kind="float16 2d", where="a U-Net", foreseen=10, measured=8, maps=0.0, weight=0.0)
    more = Scratch(kind="float32 2d", where="a U-Net", foreseen=10, measured=20, maps=0.25, weight=2.0)
    made = Calibration(device_name=PLAN.device.name, made="today", pinned_return_rate=19e9, scratch=(less, more))
    text = page((tables.calibration_table(made),), 80)
    assert re.search("scratch of convolutions +as foreseen in 1 of 2 kinds", text)
    assert re.search("  float32 2d +20 B, not 10 B", text)
    assert re.search("back to pinned memory, which no plan does +19.0 GB/s", text)
