"""Sizes of the pictures a call is handed: start images, masks, control images.  Nobody looks at their pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, groupby
from math import prod
from typing import Any, TypeAlias

from planner.errors import BadRequest

FORM = "1024x768 for width x height, auto for the size of the result, and 1024x768*3 for three of them"
MOST = 10_000
"""Pictures in one argument; the longest video model shipped makes 257 frames."""
LARGEST = 65_536
"""Pixels of a side; a picture of that size squared is 12.9 GB on the host."""

_SIZE = re.compile(r"(?:auto|([0-9]{1,9})\s*[x×]\s*([0-9]{1,9}))(?:\s*\*\s*([0-9]{1,9}))?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Pixels of one picture; None: as large as what is generated."""

    width: int | None = None
    height: int | None = None

    def __str__(self) -> str:
        """The text that `sizes` reads back as this size."""
        return f"{self.width}x{self.height}" if self.width is not None else "auto"


Sizes: TypeAlias = tuple[Size, ...]
"""Of the pictures of one argument, in order; none: the argument is not given."""


def sizes(name: str, given: object) -> Sizes:
    """The sizes of what is `given` for the argument `name`.

    None or nothing, True for one picture of the size of the result, text such as `1024x768*3, auto`, a PIL image, an
    array (…, height, width, channels) or (height, width), a tensor (…, channels, height, width), or a sequence of them.
    Raises BadRequest.
    """
    match given:
        case None | False | ():
            return ()
        case True:
            return (Size(),)
        case Size():
            found: Sizes = (given,)
        case str():
            found = tuple(chain.from_iterable(_read(name, part) for part in given.split(",")))
        case list() | tuple():
            found = tuple(chain.from_iterable(sizes(name, item) for item in given))
        case _:
            found = _measured(name, given)
    return _checked(name, found)


def spelled(given: Sizes) -> str | None:
    """The text that `sizes` reads back; equal neighbours are counted.  None for no picture."""
    runs = ((str(size), len(list(same))) for size, same in groupby(given))
    return ", ".join(text if count == 1 else f"{text}*{count}" for text, count in runs) or None


def _read(name: str, text: str) -> Iterable[Size]:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadRequest(f"{name} {text.strip()!r} is not the size of a picture; write {FORM}.")
    size = Size(width=int(match[1]), height=int(match[2])) if match[1] else Size()
    return (size,) * min(int(match[3] or 1), MOST + 1)


def _measured(name: str, picture: Any) -> Sizes:
    """Sizes of a live picture, array or tensor, as diffusers understands its dimensions."""
    shape = getattr(picture, "shape", None)
    if shape is None:
        return (_size(name, getattr(picture, "size", None), picture),)
    whole = tuple(int(n) for n in shape)
    if len(whole) > 2 and hasattr(picture, "layout"):  # of these three only torch's tensors have one
        *rows, channels, height, width = whole
    elif len(whole) > 2:
        *rows, height, width, channels = whole
    elif len(whole) == 2:
        rows, channels, (height, width) = [], 1, whole
    else:
        return (_size(name, None, f"of shape {whole}"),)
    if channels not in (1, 3):
        raise BadRequest(
            f"{name} of shape {whole} has {channels} channels where a picture has 3 and a mask 1; "
            "plan with the picture itself, not with its latents."
        )
    return (_size(name, (width, height), whole),) * min(prod(rows), MOST + 1)


def _size(name: str, sides: object, given: object) -> Size:
    match sides:
        case (int(width), int(height)):
            return Size(width=width, height=height)
    raise BadRequest(f"{name} is {given}; give a picture, or its size: {FORM}.")


def _checked(name: str, found: Sizes) -> Sizes:
    if not 0 < len(found) <= MOST:
        raise BadRequest(f"{name} is {'no picture' if not found else f'more than {MOST} pictures'}; write {FORM}.")
    for size in found:
        sides = [side for side in (size.width, size.height) if side is not None]
        if len(sides) == 1 or not all(1 <= side <= LARGEST for side in sides):
            raise BadRequest(f"{name} is {size}; a side has 1 to {LARGEST} pixels: write {FORM}.")
    return found
