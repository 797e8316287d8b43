"""Random combinations of all techniques keep their promises on full-size pipelines, and leave nothing behind.

A part of benchmarks/combinations.py, whose results are committed beside it.
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
CHOSEN = range(len(FAMILIES))
"""One combination of each family."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


@pytest.mark.parametrize("number", CHOSEN, ids=[family.model for family in FAMILIES])
def test_a_combination_is_as_promised_and_taken_back(vgpu: rig.Server, cache: Path, number: int) -> None:
    row = seen(vgpu, draw(SEED, number, cache))
    assert row.kept, row
