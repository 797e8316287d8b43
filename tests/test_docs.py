"""The examples of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from techniques import tiny

import planner
from planner import auto
from planner.snapshot import snapshot

DOCS = Path(__file__).parent.parent / "docs"


def test_a_technique_of_ones_own(tmp_path: Path, monkeypatch: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "techniques.md").read_text("utf-8"), re.DOTALL)
    pipe = tiny.stable_diffusion_xl(tmp_path).to(torch.float16)
    monkeypatch.setattr(auto, "card_for", lambda _: planner.card("rtx-3070"))
    before, seen = snapshot(pipe), {"pipe": pipe}
    for block in blocks:
        exec(block, seen)
    plan: Any = seen["plan"]
    assert plan.option("no_upcast")
    usual = planner.plan(pipe, device=planner.card("rtx-3070"), budget="8GB", height=512, width=512, steps=2)
    assert plan.promise.allocated < usual.baseline.allocated
    assert before.difference(snapshot(pipe)) == ()
    assert pipe.vae.config.force_upcast
