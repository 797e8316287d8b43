"""Sizes of pictures: as text, as live pictures, arrays and tensors, and what is refused."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from planner.errors import BadRequest
from planner.sizes import LARGEST, MOST, Size, Sizes, sizes, spelled

SIDES = st.integers(1, LARGEST)
SIZE = st.just(Size()) | st.builds(Size, width=SIDES, height=SIDES)
SIZES = st.lists(SIZE, min_size=1, max_size=5).flatmap(
    lambda few: st.lists(st.sampled_from(few), min_size=1, max_size=12).map(tuple)
)


def of(*sides: tuple[int, int]) -> Sizes:
    return tuple(Size(width=width, height=height) for width, height in sides)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024x768", of((1024, 768))),
        ("1024×768", of((1024, 768))),
        (" 1024 X 768 ", of((1024, 768))),
        ("auto", (Size(),)),
        ("Auto*2", (Size(), Size())),
        ("832x480*3", of(*[(832, 480)] * 3)),
        ("512x512, auto,64x32*2", (*of((512, 512)), Size(), *of((64, 32), (64, 32)))),
    ],
)
def test_text(text: str, expected: Sizes) -> None:
    assert sizes("image", text) == expected


@given(SIZES)
def test_spelling_reads_back(given: Sizes) -> None:
    text = spelled(given)
    assert text
    assert sizes("image", text) == given
    assert sizes("image", list(given)) == sizes("image", [str(size) for size in given]) == given


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 3]))
def test_live_pictures_are_measured_as_diffusers_reads_them(width: int, height: int, count: int, channels: int) -> None:
    wanted = of((width, height)) * count
    assert sizes("image", [Image.new("RGB", (width, height))] * count) == wanted
    assert sizes("image", numpy.zeros((count, height, width, channels), dtype="uint8")) == wanted
    assert sizes("image", torch.zeros(count, channels, height, width)) == wanted
    assert sizes("mask", [numpy.zeros((height, width))] * count) == wanted
    assert sizes("mask", [torch.zeros(height, width)] * count) == wanted


def test_a_video_counts_its_frames() -> None:
    assert sizes("video", torch.zeros(2, 5, 3, 16, 32)) == of((32, 16)) * 10
    assert sizes("video", numpy.zeros((5, 16, 32, 3))) == of((32, 16)) * 5


@pytest.mark.parametrize("nothing", [None, False, (), []])
def test_nothing_is_no_picture(nothing: object) -> None:
    assert sizes("image", nothing) == ()
    assert spelled(()) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("1024", "'1024' is not the size of a picture; write 1024x768 for width x height"),
        ("", "'' is not the size"),
        ("1024x", "not the size"),
        ("-1x5", "not the size"),
        ("sdxl", "'sdxl' is not the size"),
        ("0x5", "image is 0x5; a side has 1 to"),
        (f"{LARGEST + 1}x5", "a side has 1 to 65536 pixels"),
        ("64x64*0", "image is no picture"),
        (f"64x64*{MOST + 1}", "more than 10000 pictures"),
        ("64x64*999999999", "more than 10000 pictures"),
        (7, "image is 7; give a picture, or its size"),
        (Size(width=5), "a side has"),
        (numpy.zeros(5), "image is of shape \\(5,\\); give a picture"),
        (numpy.zeros((0, 8, 8, 3)), "image is no picture"),
        (numpy.zeros((0, 8, 3)), "a side has 1 to"),
        (torch.zeros(1, 4, 128, 128), "has 4 channels where a picture has 3 and a mask 1; plan with the picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_advice(wrong: object, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        sizes("image", wrong)
