"""Python's collector of cycles, which looks through a whole program again and again while plans are worked out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

USUAL = (700, 10, 10)
"""Python's own thresholds.  Recordings keep to them: when a cycle goes, so do the tensors it holds."""
SELDOM = (1_000_000, 20, 100)
"""Next to nothing of what a plan makes is garbage: an eighth of the time of a warm one of SDXL went into looking."""


@contextmanager
def collecting(thresholds: tuple[int, int, int]) -> Iterator[None]:
    """Collect by these thresholds, then as before; what was made meanwhile counts as old then."""
    before = gc.get_threshold()
    gc.set_threshold(*thresholds)
    try:
        yield
    finally:
        if thresholds > before and not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, else all of it is looked through at once
        gc.set_threshold(*before)
