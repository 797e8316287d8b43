from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import hypothesis
import pytest

from planner import cudnn

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

ON_CUDNN = ("virtual_gpu", "test_cudnn.py")
"""Tests that ask the cuDNN of this machine; the others take the rules, so that numbers are the same everywhere."""


@pytest.fixture(autouse=True, scope="module")
def rules_or_cudnn(request: pytest.FixtureRequest) -> Iterator[None]:
    if any(name in request.path.parts for name in ON_CUDNN):
        yield
        return
    with patch.object(cudnn, "library", lambda: None):
        yield
