"""Refresh: where a call of the pipeline was short of memory, the next begins with an emptied cache, as the first did.

What a call leaves in torch's cache are large segments, in which lies down what the next one keeps for long: SDXL with
30 of 95 units streamed made one picture within 4.6 GB, and found no room for the second one's decode within 5.5.
"""

from __future__ import annotations

from typing import Any

from planner.techniques.base import Undo
from planner.techniques.live import called


def refreshed(pipe: Any) -> Undo:
    """Look before each call whether the one before had to try a request again, and give the cache back where it had."""
    import torch

    if not torch.cuda.is_available():
        return lambda: None
    original, known = type(pipe), _retries()
    whole_call: Any = original.__call__

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        nonlocal known
        if (now := _retries()) > known:
            torch.cuda.empty_cache()
            known = now
        return whole_call(self, *args, **kwargs)

    pipe.__class__ = called(original, __call__)

    def undo() -> None:
        pipe.__class__ = original

    return undo


def _retries() -> int:
    import torch

    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0))
