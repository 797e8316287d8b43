from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.virtual_gpu)


@pytest.fixture(scope="session")
def vgpu() -> Iterator[rig.Server]:
    """Runs jobs and scripts on the virtual GPU, which is built first if need be."""
    if lacking := rig.missing():
        pytest.skip(lacking)
    with rig.Server() as server:
        yield server
