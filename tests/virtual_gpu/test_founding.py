"""Single techniques on real pipelines: what is predicted is what PyTorch's allocator sees.

A part of benchmarks/founding.py, whose results are committed beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import rig
from rig import Server

sys.path.append(str(rig.PROJECT / "benchmarks"))

from founding import SETTINGS, WHOLE, cases, compare, measure

from planner.pricing import described

CHOSEN = {
    "sd15 float16 512²": (
        "placement=resident",
        "channels_last_vae=vae + placement=resident",
        "vae_tiling=384 + placement=resident",
        "attention=sliced + placement=resident",
        "placement=sequential",
    ),
    "sdxl float16 1024²": ("placement=resident", "placement=model"),
    "flux1-dev bfloat16 1024²": ("placement=resident",),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_peaks_are_as_predicted(vgpu: Server, tmp_path: Path, name: str) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    wanted = set(CHOSEN[name])
    for case in cases(setting, tmp_path):
        if case.images == 1 and (options := described(case.options)) in wanted:
            wanted.remove(options)
            whole = next(row for row in compare(case, measure(vgpu, case)) if row.phase == WHOLE)
            assert -0.005 <= whole.errors[0] <= 0.01, options
        if not wanted:
            return
    pytest.fail(f"not offered: {wanted}")
