"""Scratch of sums, means and norms: what torch asks for on the virtual GPU, and what is foreseen."""

from __future__ import annotations

from typing import Any

import pytest
import rig

from planner.cards import card
from planner.cost import rounded
from planner.kernels import Reduction
from planner.reduction import layout, requests

pytestmark = pytest.mark.virtual_gpu

CASES: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    ("norm", "float16", (1, 128, 128, 1280), (0, 1, 2, 3), (1, 2)),
    ("norm", "bfloat16", (2, 64, 64, 640), (0, 1, 2, 3), (1, 2)),
    ("norm", "float32", (1, 96, 40_000), (0, 1, 2), (1,)),
    ("norm", "float16", (1, 64, 64, 642), (0, 1, 2, 3), (1, 2)),
    ("norm", "float16", (1, 256, 4096, 5), (0, 1, 2, 3), (2,)),
    ("mean", "float16", (2, 4096, 1536), (0, 1, 2), (1,)),
    ("mean", "float32", (2, 320, 96, 96), (0, 2, 3, 1), (2, 3)),
    ("mean", "float32", (2, 320, 96, 96), (0, 1, 2, 3), (2, 3)),
    ("mean", "bfloat16", (2, 4096, 1536), (0, 1, 2), (2,)),
    ("sum", "float32", (3, 5_000_000), (0, 1), (1,)),
    ("sum", "float16", (3, 50_000, 33), (0, 1, 2), (0, 1)),
)
"""Operation, dtype, shape, the order in which its dimensions lie, and those that go."""


def reduced(cases: list[list[Any]]) -> list[int]:
    """Sent to the card: most bytes each case holds beside input and result."""
    import torch

    found = []
    for name, dtype, shape, order, over in cases:
        laid = torch.empty([shape[d] for d in order], dtype=getattr(torch, dtype), device="cuda")
        x = laid.permute([order.index(d) for d in range(len(order))])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = torch.linalg.vector_norm(x, dim=over) if name == "norm" else getattr(torch, name)(x, dim=over)
        kept = torch.cuda.memory_allocated() - before
        found.append(torch.cuda.max_memory_allocated() - before - kept)
        del laid, x, result
    return found


@pytest.mark.parametrize("name", ["rtx-2080", "a100-sxm4-80gb", "rtx-3090", "b200"])
def test_what_blocks_leave_for_one_another(vgpu: rig.Server, name: str) -> None:
    seen = vgpu.script(reduced, {"cases": [list(case) for case in CASES]}, **rig.card(name))
    foreseen = [sum(map(rounded, requests(_kernel(*case), card(name)))) for case in CASES]
    for case, most, told in zip(CASES, seen, foreseen, strict=True):
        assert told <= most <= told + 2**20, case  # a block of the large pool is not split for a rest of 1 MiB
    assert sum(bool(most) for most in seen) >= 4


def _kernel(name: str, dtype: str, shape: tuple[int, ...], order: tuple[int, ...], over: tuple[int, ...]) -> Reduction:
    strides, elements = dict[int, int](), 1
    for dimension in reversed(order):
        strides[dimension] = elements
        elements *= shape[dimension]
    values = 1
    for dimension in over:
        values *= shape[dimension]
    along, vector = layout(shape, [strides[d] for d in range(len(shape))], over)
    return Reduction(
        name=name, flops=0, traffic=0, results=elements // values, values=values, along=along, vector=vector
    )  # fmt: skip
