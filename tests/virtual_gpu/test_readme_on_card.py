"""What README configures, on the card it names: it runs within the budget, peaks as promised, and comes back."""

from __future__ import annotations

import re
from typing import Any

import pytest
import rig

README = (rig.PROJECT / "README.md").read_text("utf-8")


def as_written(block: str) -> dict[str, Any]:
    import diffusers
    import torch
    from inside import pipelines, smallvalues

    from planner.snapshot import snapshot

    mode = smallvalues.install()
    pipe = pipelines.shipped("sd15")
    before = snapshot(pipe)
    diffusers.StableDiffusionPipeline.from_pretrained = lambda *_, **__: pipe
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert mode is not None
    return {
        "promised": names["plan"].promise.allocated,
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "capacity": names["plan"].capacity,
        "options": [option.technique for option in names["plan"].options if not option.neutral],
        "left": before.difference(snapshot(pipe)),
    }


def test_first_block(vgpu: rig.Server) -> None:
    block = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[0]
    answer = vgpu.script(as_written, {"block": block}, **rig.card("rtx-3070"))
    assert answer["options"] == ["vae_tiling"]
    assert answer["reserved"] <= answer["capacity"]
    assert answer["peak"] == pytest.approx(answer["promised"], rel=0.005)
    assert answer["left"] == []
