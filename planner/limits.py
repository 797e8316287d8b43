"""Limits: the last step of a growing request that fits, found in as few looks as possible; each look is a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from planner.errors import BadRequest
from planner.request import Request

Kind = Literal["size", "batch", "frames"]
EDGE = 64
"""Pixels by which edges grow: a multiple of every shipped pipeline's own step."""
FRAMES = 8
"""Frames by which videos grow, beyond the first: LTX compresses 8 to one; Wan, CogVideoX and HunyuanVideo 4."""
MOST = {"size": 16_384 // EDGE, "batch": 1024, "frames": 1024 // FRAMES}
"""Steps at which the search ends; torch's convolutions count elements in 32 bits, which 16,384² × 8 channels fill."""

LINES = 6
"""Looks after which the bracket is halved: need does not grow evenly everywhere, and a line may creep."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one step: whether it fits, and the bytes it needs with room to spare."""

    fits: bool
    needs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A request that grows in steps of one kind, from its least form on."""

    kind: Kind
    request: Request

    def __post_init__(self) -> None:
        if self.kind == "size" and not (self.request.height and self.request.width):
            raise BadRequest("The request names no height and width whose shape could be kept; give both.")
        if self.kind == "frames" and not self.request.frames:
            raise BadRequest("The request names no frames, so this pipeline makes images; look for size or batch.")

    def at(self, step: int) -> Request:
        """The request after `step` steps, counted from one."""
        if self.kind == "batch":
            return replace(self.request, images=step)
        if self.kind == "frames":
            return replace(self.request, frames=1 + FRAMES * step)
        return replace(self.request, height=self._edge(self._height, step), width=self._edge(self._width, step))

    @property
    def now(self) -> int:
        """The step at or below the request as it was asked."""
        request = self.request
        grown = {
            "batch": request.images,
            "frames": ((request.frames or 1) - 1) // FRAMES,
            "size": max(self._height, self._width) // EDGE,
        }
        return min(max(grown[self.kind], 1), MOST[self.kind])

    def load(self, step: int) -> float:
        """What activations grow with: the pixels, images or frames of a step."""
        wanted = self.at(step)
        return float(self._pixels(wanted) if self.kind == "size" else wanted.images * (wanted.frames or 1))

    def _edge(self, edge: int, step: int) -> int:
        """The longer edge has `step` steps, the other keeps the shape."""
        return max(round(edge * step / max(self._height, self._width)), 1) * EDGE

    @staticmethod
    def _pixels(wanted: Request) -> int:
        return (wanted.height or 0) * (wanted.width or 0)

    @property
    def _height(self) -> int:
        return self.request.height or 1

    @property
    def _width(self) -> int:
        return self.request.width or 1


def last_fitting(
    look: Callable[[int], Look], growth: Growth, capacity: int, known: dict[int, Look], start: int | None = None
) -> int:
    """The last step that fits within `capacity` bytes, 0 where none does; what fits at a step fits below it too.

    Need grows about evenly with the pixels, images or frames, so each look is where the line through the two nearest
    known ones meets the capacity.  `known` is what was seen before, and gains what is seen here.  The first look is at
    `start`, by default the request as it was asked.
    """
    low, high = 0, MOST[growth.kind] + 1
    step = start or growth.now
    while True:
        if step not in known:
            known[step] = look(step)
        low = max((n for n, seen in known.items() if seen.fits), default=0)
        high = min((n for n, seen in known.items() if not seen.fits and n > low), default=high)
        if high - low <= 1:
            return low
        step = guess(growth, capacity, known, low, high)


def guess(growth: Growth, capacity: int, known: dict[int, Look], low: int, high: int) -> int:
    """The step between `low` and `high`, both excluded, where the capacity is met; half way where no line says so."""
    points = sorted((growth.load(n), seen.needs) for n, seen in known.items())
    nearest = sorted(sorted(points, key=lambda point: abs(point[1] - capacity))[:2])
    (load, needs), (more, rise) = nearest[0], nearest[-1]
    if len(points) == 1:
        wanted = load * capacity / needs
    elif rise > needs and len(points) < LINES:
        wanted = load + (capacity - needs) * (more - load) / (rise - needs)
    else:
        return (low + high) // 2
    return max(next((n for n in range(low + 1, high) if growth.load(n) > wanted), high) - 1, low + 1)
