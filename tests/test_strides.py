"""Strides against torch's own C++, on real tensors."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.strides import channels_last, view_stride

EDGES = st.sampled_from([1, 1, 2, 3, 4])


@st.composite
def laid_out(draw: st.DrawFn, *, least: int = 1, most: int = 5) -> torch.Tensor:
    """A real tensor whose dimensions are permuted, cut, stepped over and repeated at random."""
    rank = draw(st.integers(least, most))
    tensor = torch.empty([draw(EDGES) for _ in range(rank)]).permute(draw(st.permutations(range(rank))))
    for d in range(rank):
        match draw(st.sampled_from(["whole", "whole", "cut", "stepped", "repeated"])):
            case "cut":
                tensor = tensor.narrow(d, 0, draw(st.integers(1, tensor.shape[d])))
            case "stepped":
                tensor = tensor[(slice(None),) * d + (slice(None, None, 2),)]
            case "repeated" if tensor.shape[d] == 1:
                tensor = tensor.expand(*tensor.shape[:d], draw(EDGES), *tensor.shape[d + 1 :])
    return tensor


@st.composite
def regrouped(draw: st.DrawFn, count: int) -> tuple[int, ...]:
    """A shape of `count` elements."""
    shape: list[int] = []
    while count > 1:
        edge = draw(st.sampled_from([n for n in range(2, count + 1) if count % n == 0]))
        shape.append(edge)
        count //= edge
    for place in draw(st.lists(st.integers(0, len(shape)), max_size=3)):
        shape.insert(place, 1)
    return tuple(draw(st.permutations(shape))) or (1,)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_views_lie_as_torch_lays_them(data: st.DataObject) -> None:
    tensor = data.draw(laid_out())
    shape = data.draw(regrouped(tensor.numel()))
    try:
        truth = tensor.view(shape).stride()
    except RuntimeError:
        truth = None
    assert view_stride(tensor.shape, tensor.stride(), shape) == truth


@settings(max_examples=200, deadline=None)
@given(laid_out())
def test_a_view_of_the_same_shape_exists_wherever_torch_finds_one(tensor: torch.Tensor) -> None:
    assert view_stride(tensor.shape, tensor.stride(), tensor.shape) == tensor.view(tensor.shape).stride()


def test_joining_what_is_apart_needs_a_copy() -> None:
    assert view_stride((2, 3), (1, 2), (6,)) is None
    assert view_stride((2, 3), (3, 1), (6,)) == (1,)
    assert view_stride((2, 3, 4), (12, 4, 1), (6, 4)) == (4, 1)
    assert view_stride((2, 3, 4), (24, 8, 1), (6, 4)) == (8, 1)
    assert view_stride((2, 3, 4), (24, 8, 1), (24,)) is None


@settings(max_examples=300, deadline=None)
@given(laid_out(least=4, most=5))
def test_memory_format_is_what_resizing_kernels_take(tensor: torch.Tensor) -> None:
    """Nearest upsampling writes its output in `suggest_memory_format()` of its input."""
    scale = 2.0
    rank = tensor.dim() - 2
    out = torch.nn.functional.interpolate(tensor, scale_factor=scale, mode="nearest")
    last = torch.channels_last if rank == 2 else torch.channels_last_3d
    expected = last if channels_last(tensor.shape, tensor.stride()) else torch.contiguous_format
    assert out.stride() == torch.empty(out.shape, memory_format=expected).stride()
    assert prod(out.shape) == tensor.numel() * 2**rank


@pytest.mark.parametrize(
    ("size", "stride", "last"),
    [
        ((2, 8, 4, 4), (128, 16, 4, 1), False),
        ((2, 8, 4, 4), (128, 1, 32, 8), True),
        ((1, 8, 1, 1), (8, 1, 8, 8), True),
        ((1, 8, 1, 1), (8, 1, 1, 1), False),  # says nothing: taken for contiguous
        ((1, 1, 4, 4), (16, 16, 4, 1), False),
        ((1, 1, 4, 4), (16, 1, 4, 1), True),
        ((1, 8, 4, 4), (0, 0, 0, 0), False),
        ((2, 0, 4, 4), (0, 1, 0, 0), False),
        ((2, 8, 4), (32, 1, 8), False),
        ((2, 8, 3, 4, 4), (384, 1, 128, 32, 8), True),
    ],
)
def test_memory_format_of_known_layouts(size: tuple[int, ...], stride: tuple[int, ...], last: bool) -> None:
    assert channels_last(size, stride) is last
