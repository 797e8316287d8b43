"""Pictures as PNG: of the size they are drawn in, with their words, and refused where the extra is missing."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops, ImageFont
from plans import PLAN

from planner import auto, cli, drawing, pictures, raster


def image(svg: str) -> Image.Image:
    return Image.open(io.BytesIO(raster.png(svg))).convert("RGB")


def test_a_picture_is_as_large_as_it_is_drawn() -> None:
    made = image(pictures.memory(PLAN))
    assert made.width == drawing.BROAD.width * raster.SCALE
    colours = {colour for _, colour in made.getcolors(1 << 20) or ()}
    assert {(0x25, 0xA1, 0x8E), (0xFF, 0xFF, 0xFF)} <= colours, "activations on paper"


@pytest.mark.parametrize("words", ["budget 8.00 GB", "3840×2224 – 5 % of 7 µs…", "−1.07 s"])
def test_words_are_drawn(words: str) -> None:
    blank, said = (image(drawing.picture(40, [drawing.text(400, 24, each)], "")) for each in ("", words))
    box = ImageChops.difference(blank, said).getbbox()
    assert box, "nothing is written"
    import font_lato

    meant = ImageFont.truetype(font_lato.Lato, 12 * raster.SCALE).getlength(words)
    assert box[2] - box[0] == pytest.approx(meant, abs=12), "every letter, none as an empty box"


def test_the_font_has_every_sign_we_write() -> None:
    import font_lato

    font = ImageFont.truetype(font_lato.Lato, 24)
    missing = bytes(font.getmask("\uffff"))
    assert not [sign for sign in "×–−µ…·÷%" if bytes(font.getmask(sign)) == missing]


@pytest.mark.parametrize("name", ["resvg_py", "font_lato"])
def test_without_the_extra_it_is_named_before_any_work(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(auto, "anatomy", lambda *_, **__: pytest.fail("work was done"))
    done = CliRunner().invoke(cli.main, ["plan", "sd15", "--gpu", "rtx-3070", "--plot", str(tmp_path / "plan.png")])
    assert done.exit_code == 2
    assert name in done.stderr
    assert "vram-planner[png]" in done.stderr
