"""Attention: what torch's kernels ask of the allocator, in order, is what is said of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import rig
from rig import Server

from planner.attention import in_order, late
from planner.cards import card
from planner.kernels import Attention

CARD = "rtx-4090"
PLAIN = Attention("float16", 2, 8, 226, 226, 64, 64)
BOOL = replace(PLAIN, mask="bool", mask_size=2 * 226 * 226, mask_columns=226, mask_aligned=False)
"""Rows of 226 numbers are not multiples of eight."""
CASES = {
    "flash": PLAIN,
    "efficient": PLAIN,
    "efficient, a mask": replace(BOOL, mask="float", mask_size=2 * 8 * 226 * 226, dtype="float32"),
    "efficient, yes or no": BOOL,
    "efficient, wide heads": replace(BOOL, head_size=160, value_size=160),
    "flash, head by head": replace(PLAIN, apart="kv"),
    "flash, padded": replace(PLAIN, head_size=36, value_size=36),
    "flash, split": replace(PLAIN, queries=16, keys=8192, apart=""),
    "cudnn": PLAIN,
    "cudnn, head by head": replace(PLAIN, apart=""),
    "cudnn, head by head and a mask": replace(BOOL, apart=""),
    "cudnn, yes or no": BOOL,
}


def on_the_card(cases: list[tuple[str, dict[str, Any]]]) -> list[list[int]]:
    """Requests of each case, by its backend, until the caller has rows that are whole."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    told = []
    for backend, a in cases:
        kind, wide = getattr(torch, a["dtype"]), a["head_size"]

        def some(which: str, rows: int, a: dict[str, Any] = a, kind: torch.dtype = kind) -> torch.Tensor:
            whole = which in a["apart"]
            shape = (rows, a["heads"]) if whole else (a["heads"], rows)
            made = torch.empty(a["batch"], *shape, a["head_size"], device="cuda", dtype=kind)
            return made.transpose(1, 2) if whole else made

        heads = some("q", a["queries"]), some("k", a["keys"]), some("v", a["keys"])
        masks = {"none": None, "float": kind, "bool": torch.bool}
        given = masks[a["mask"]] and torch.zeros(
            2, 8 if a["mask"] == "float" else 1, 226, 226, device="cuda", dtype=masks[a["mask"]]
        )
        torch.cuda.memory._record_memory_history(max_entries=1000)
        with torch.no_grad(), sdpa_kernel(getattr(SDPBackend, f"{backend.upper()}_ATTENTION")):
            out = scaled_dot_product_attention(*heads, attn_mask=given)
        out = out.transpose(1, 2).reshape(a["batch"], a["queries"], a["heads"] * wide)
        (events,) = torch.cuda.memory._snapshot()["device_traces"]
        torch.cuda.memory._record_memory_history(enabled=None)
        told.append([event["size"] for event in events if event["action"] == "alloc"])
        del out
    return told


@pytest.fixture(scope="module")
def told(vgpu: Server) -> dict[str, list[int]]:
    asked = [(name.partition(",")[0], asdict(a)) for name, a in CASES.items()]
    return dict(zip(CASES, vgpu.script(on_the_card, {"cases": asked}, **rig.card(CARD)), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_requests_come_in_the_order_in_which_the_card_sees_them(told: dict[str, list[int]], name: str) -> None:
    backend, device = name.partition(",")[0], card(CARD)
    if backend == "cudnn":  # by its name diffusers would copy for it first; where torch takes it by itself nobody does
        attention, device = CASES[name], replace(device, compute_capability=(9, 0))
    else:
        attention = replace(CASES[name], backend=backend)
    asked = [size for size in in_order(attention, device) if size >= 0]
    before = sum(size >= 0 for size in in_order(attention, device)[: late(attention, device)[0]])
    a = attention
    output = a.batch * a.heads * a.queries * a.value_size * (4 if a.dtype == "float32" else 2)
    assert told[name] == [*asked[:before], output, *asked[before:]]
