"""Text at the borders: what is read, what is shown, and that the two agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadRequest
from planner.units import format_bytes, format_count, format_seconds, parse_bytes, spell_bytes

AMOUNTS = st.integers(0, 10**15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 2**33),
        ("8 GiB", 2**33),
        ("7500MB", 7_500_000_000),
        ("8G", 8 * 10**9),
        ("512M", 512 * 10**6),
        ("8gb", 8 * 10**9),
        ("8gib", 2**33),
        (" 8.5 GB ", 8_500_000_000),
        ("0.1GB", 100_000_000),
        ("1.5GiB", 3 * 2**29),
        ("1TB", 10**12),
        ("64KiB", 65536),
        ("64kB", 64000),
        ("12B", 12),
        ("8589934592", 2**33),
        (2**33, 2**33),
        (0, 0),
    ],
)
def test_reads(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "8 bananas",
        "",
        "GB",
        "-8GB",
        -8,
        "8,5GB",
        "8.GB",
        ".5GB",
        "8GBit",
        "8GB of it",
        "nan",
        "٨GB",
        "1" * 5000,
        True,
        8.0,
    ],
)
def test_refuses_and_names_the_accepted_forms(text: str | int) -> None:
    with pytest.raises(BadRequest, match=r"8GB .* 8GiB .* 7500MB or a plain number"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (7_451_000_000, "7.45 GB"),
        (618_400_000, "618 MB"),
        (512, "512 B"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_600_000, "1.00 GB"),
        (25_769_803_776, "25.8 GB"),
        (99_960_000_000, "100 GB"),
        (2 * 10**12, "2.00 TB"),
        (-4_600_000_000, "-4.60 GB"),
    ],
)
def test_shows_three_significant_digits(n: int, expected: str) -> None:
    assert format_bytes(n) == expected


@given(AMOUNTS)
def test_what_is_shown_reads_back_within_its_rounding(n: int) -> None:
    assert abs(parse_bytes(format_bytes(n)) - n) <= n / 200


@given(AMOUNTS | st.integers(0, 10**6).map(lambda n: n * 2**20))
def test_what_is_spelled_reads_back_exactly(n: int) -> None:
    assert parse_bytes(spell_bytes(n)) == n


@pytest.mark.parametrize(
    ("n", "expected"),
    [(8 * 10**9, "8GB"), (2**33, "8GiB"), (7_500_000_000, "7500MB"), (8_000_000_001, "8000000001"), (0, "0")],
)
def test_spells_shortly(n: int, expected: str) -> None:
    assert spell_bytes(n) == expected


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (0, "0 s"),
        (0.00085, "850 µs"),
        (0.042, "42.0 ms"),
        (0.9996, "1.00 s"),
        (7.31, "7.31 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 0 s"),
        (125.4, "2 min 5 s"),
        (3599.7, "1 h 0 min"),
        (4320, "1 h 12 min"),
        (-7.31, "-7.31 s"),
    ],
)
def test_shows_seconds(s: float, expected: str) -> None:
    assert format_seconds(s) == expected


@given(st.floats(1e-6, 1e6))
def test_shown_seconds_read_back_within_their_rounding(s: float) -> None:
    seconds = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6}
    words = format_seconds(s).split()
    shown = sum(float(number) * seconds[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(shown - s) <= max(s / 100, 0.5 if 60 <= s < 3600 else 0)


@pytest.mark.parametrize(("count", "said"), [(7, "7"), (999, "999"), (1234, "1,230"), (67_968, "68,000")])
def test_counts_have_three_digits(count: int, said: str) -> None:
    assert format_count(count) == said
