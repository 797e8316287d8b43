"""Random combinations of all techniques keep their promises on full-size pipelines, and leave nothing behind.

A part of benchmarks/combinations.py, which draws as many as one likes, and of all there is.  Left out here are
quantized weights, since what is drawn must not hang on whether torchao is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import rig

sys.path.append(str(rig.PROJECT / "benchmarks"))

from combinations import seen
from combining import FAMILIES, draw

SEED = 4
CHOSEN = [pytest.param(number, id=family.model) for number, family in enumerate(FAMILIES)]
"""One combination of each family."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


@pytest.mark.parametrize("number", CHOSEN)
def test_a_combination_is_as_promised_and_taken_back(vgpu: rig.Server, cache: Path, number: int) -> None:
    row = seen(vgpu, draw(SEED, number, cache, without=frozenset({"quantization"})))
    assert row.kept, row
