"""Promises for pipelines of many families, everything resident, against the virtual GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rig

from planner.cards import card
from planner.request import Request
from planner.study import opened

sys.path.append(str(rig.PROJECT / "benchmarks"))

from measuring import on_the_card

CARD, VRAM = "rtx-4090", 400 * rig.GIB
"""Compute capability 8.9, with memory enough for everything."""
WITHIN = 0.005
"""Share of the measured peak, over and under, that the promise may miss it by."""
PATIENCE = 300
"""Seconds of the processor after which a call is given up."""
MEASURED = (
    "chroma", "cogvideox-2b", "cogview3-plus", "if-i-m", "kandinsky-2.2-prior", "kandinsky-3", "kolors", "latte",
    "ltx-video-0.9.5", "lumina2", "mochi", "sana", "stable-audio", "svd", "wuerstchen-prior",
)  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_a_default_request_needs_what_is_promised(vgpu: rig.Server, name: str, tmp_path: Path) -> None:
    study = opened(name, Request(steps=2), cache=tmp_path)
    pricer = study.pricer(replace(card(CARD), total=VRAM, free=VRAM))
    promised = pricer.rehearse(pricer.baseline(), None).allocated
    sent = {
        "model": name, "dtype": None, "request": study.request.to_json(),
        "options": [["placement", "resident", ""]], "seconds": PATIENCE,
    }  # fmt: skip
    seen = vgpu.script(on_the_card, sent, **rig.card(CARD) | {"vram": VRAM})
    assert seen["outcome"] == "ran"
    assert promised == pytest.approx(seen["phases"]["whole"]["allocated"], rel=WITHIN)
