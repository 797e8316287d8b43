"""Bytes and seconds as people write and read them.  Inside the planner both are plain numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from planner.errors import BadRequest

_DECIMAL = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}
_BINARY = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_LETTERS = {name[0]: size for name, size in _DECIMAL.items()}
_SIZES = {name.lower(): size for name, size in {**_DECIMAL, **_BINARY, **_LETTERS, "B": 1, "": 1}.items()}
_AMOUNT = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)

FORMS = "8GB (8·10⁹ bytes), 8GiB (2³³ bytes), 7500MB or a plain number of bytes"
"""What `parse_bytes` reads, in words for messages."""


FEW, MEANT = 1000, "write {}GB if gigabytes were meant"
"""Bytes below which a unit was forgotten, and what is said then."""


def parse_bytes(text: str | int) -> int:
    """Bytes from `8GB`, `8GiB`, `7500MB`, `8.5G` or a plain number of bytes, letter case and spaces aside.

    A bare G or M is decimal, like GB and MB.  Raises BadRequest for anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2].lower() not in _SIZES:
        raise BadRequest(f"{text!r} is not an amount of memory; write {FORMS}.")
    return round(Fraction(match[1]) * _SIZES[match[2].lower()])


def format_bytes(n: int) -> str:
    """Decimal units and three significant digits, `7.45 GB`; whole bytes below 1 kB."""
    rounded = float(f"{n:.2e}")
    for name, size in _DECIMAL.items():
        if abs(rounded) >= size:
            return f"{_three_digits(rounded / size)} {name}"
    return f"{n} B"


def format_count(n: int) -> str:
    """Three significant digits, `68,000`."""
    return f"{round(float(f'{n:.2e}')):,}"


def format_flops(rate: float) -> str:
    """`40.6 TFLOP/s`, `2.25 PFLOP/s`."""
    name, size = ("PFLOP/s", 1e15) if float(f"{rate:.2e}") >= 1e15 else ("TFLOP/s", 1e12)
    return f"{_three_digits(float(f'{rate:.2e}') / size)} {name}"


def spell_bytes(n: int) -> str:
    """The shortest text that `parse_bytes` reads back as exactly `n`: `8GB`, `8GiB`, `7500MB`, `8000000001`."""
    exact = (f"{n // size}{name}" for name, size in {**_DECIMAL, **_BINARY}.items() if n and n % size == 0)
    return min((*exact, str(n)), key=len)


def format_seconds(s: float) -> str:
    """`850 µs`, `42.0 ms`, `7.31 s`, `2 min 5 s`, `1 h 12 min`."""
    if s < 0:
        return f"-{format_seconds(-s)}"
    rounded = float(f"{s:.2e}")
    if rounded >= 60:
        return _clock(s)
    for name, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if rounded >= size:
            return f"{_three_digits(rounded / size)} {name}"
    return "0 s"


def _three_digits(value: float) -> str:
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, 3 - whole)}f}"


def _clock(s: float) -> str:
    minutes, seconds = divmod(round(s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(round(s / 60), 60)
    return f"{hours} h {minutes} min"
