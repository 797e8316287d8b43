from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from . import tiny


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models run fastest on one thread, and in one order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(tiny.MAKERS))
def pipe(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each tiny pipeline in turn."""
    return tiny.MAKERS[request.param](tmp_path)


@pytest.fixture
def sd(tmp_path: Path) -> Any:
    return tiny.stable_diffusion(tmp_path)


@pytest.fixture
def sdxl(tmp_path: Path) -> Any:
    return tiny.stable_diffusion_xl(tmp_path)


@pytest.fixture
def flux(tmp_path: Path) -> Any:
    return tiny.flux(tmp_path)


@pytest.fixture
def wan(tmp_path: Path) -> Any:
    return tiny.wan(tmp_path)
