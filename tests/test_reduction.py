"""Scratch of sums and norms against requests that torch 2.14.1 made on the virtual GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from techniques.programs import device

from planner.kernels import Reduction
from planner.reduction import layout, requests

A100 = replace(device((8, 0)), multiprocessors=108)
B200 = replace(device((10, 0)), multiprocessors=148)


def reduced(shape: tuple[int, ...], over: tuple[int, ...]) -> Reduction:
    """A reduction of a contiguous tensor."""
    strides, elements = [], 1
    for size in reversed(shape):
        strides.insert(0, elements)
        elements *= size
    values = 1
    for dimension in over:
        values *= shape[dimension]
    along, vector = layout(shape, strides, over)
    return Reduction(
        name="linalg_vector_norm", flops=1, traffic=1, results=elements // values, values=values, along=along,
        vector=vector,
    )  # fmt: skip


def test_global_response_norm_of_wuerstchen_and_stable_cascade() -> None:
    """Norms over a picture whose channels lie side by side: the largest requests of their decoders."""
    norm = reduced((1, 128, 128, 1280), (1, 2))
    assert (norm.along, norm.vector) == (False, 4)
    assert requests(norm, B200) == (155_320_320, 40)
    assert requests(norm, A100) == (113_377_280, 40)


def test_many_results_need_no_second_block() -> None:
    assert requests(reduced((1, 384, 65536), (1,)), A100) == (), "along channels that lie apart"
    assert requests(reduced((4096, 64), (1,)), A100) == (), "short rows"


@pytest.mark.parametrize(
    ("shape", "strides", "over", "found"),
    [
        ((2, 64, 64), (4096, 64, 1), {2}, (True, 1)),
        ((2, 64, 256), (16384, 256, 1), {2}, (True, 4)),
        ((2, 64, 64), (4096, 1, 64), {1}, (True, 1)),
        ((2, 64, 66), (4224, 66, 1), {1}, (False, 2)),
        ((2, 64, 64), (4096, 64, 1), {0, 1, 2}, (True, 4)),
        ((2, 64, 64), (8192, 128, 2), {1}, (False, 1)),
    ],
)
def test_layouts(shape: tuple[int, ...], strides: tuple[int, ...], over: set[int], found: tuple[bool, int]) -> None:
    assert layout(shape, strides, over) == found
