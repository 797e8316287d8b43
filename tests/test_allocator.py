"""The allocator against sums done by hand and against what must hold after any course of requests."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.allocator import Allocator, OutOfMemory, round_up, segment_size
from planner.blocks import Block

MIB = 2**20

sizes = st.one_of(st.integers(0, 4096), st.integers(1, 2 * MIB), st.integers(MIB, 90 * MIB), st.just(20 * MIB))
actions = st.lists(st.one_of(sizes, st.integers(-40, -1), st.none()), max_size=80)
caps = st.one_of(st.none(), st.integers(0, 400 * MIB))


def take(allocator: Allocator, size: int) -> Block:
    block = allocator.malloc(size)
    assert block is not None
    return block


def play(allocator: Allocator, course: list[int | None], check=lambda live: None) -> list[Block]:
    """Requests are sizes, negative numbers free the block that far from the newest, None empties the cache."""
    live: list[Block] = []
    for action in course:
        if action is None:
            allocator.empty_cache()
        elif action >= 0:
            try:
                block = allocator.malloc(action)
            except OutOfMemory:
                block = None
            live += [] if block is None else [block]
        elif -action <= len(live):
            allocator.free(live.pop(action))
        check(live)
    return live


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (0, 0, 0),
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (25 * MIB, 26 * MIB, 26 * MIB),  # one MiB is too little to split off
        (25 * MIB - 512, 25 * MIB - 512, 26 * MIB),
        (19 * MIB + 1, 20 * MIB, 20 * MIB),
    ],
)
def test_first_request(size: int, allocated: int, reserved: int) -> None:
    allocator = Allocator()
    allocator.malloc(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [(1, 512, 2 * MIB), (MIB + 1, MIB + 512, 20 * MIB), (25 * MIB, 25 * MIB, 40 * MIB), (60 * MIB, 60 * MIB, 60 * MIB)],
)
def test_first_request_of_expandable_segments(size: int, allocated: int, reserved: int) -> None:
    allocator = Allocator(expandable=True)
    allocator.malloc(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_nothing_is_asked_for_nothing() -> None:
    allocator = Allocator(capacity=0)
    assert allocator.malloc(0) is None
    allocator.free(None)
    assert allocator.can_malloc(0)


def test_medium_requests_share_a_segment() -> None:
    allocator = Allocator()
    for _ in range(4):
        take(allocator, 5 * MIB)
    assert allocator.reserved == 20 * MIB
    take(allocator, 5 * MIB)
    assert allocator.reserved == 40 * MIB


def test_small_and_large_requests_share_nothing() -> None:
    allocator = Allocator()
    allocator.free(take(allocator, 5 * MIB))
    take(allocator, 4096)
    assert allocator.reserved == 22 * MIB


def test_smallest_sufficient_block_is_reused_and_the_lowest_among_equals() -> None:
    allocator = Allocator()
    low, wide, high = (take(allocator, size) for size in (30 * MIB, 50 * MIB, 30 * MIB))
    for block in (wide, high, low):
        allocator.free(block)
    assert take(allocator, 29 * MIB).address == low.address
    assert take(allocator, 29 * MIB).address == high.address
    assert take(allocator, 29 * MIB).address == wide.address


def test_neighbours_join_on_both_sides() -> None:
    allocator = Allocator()
    first, second, third, _last = (take(allocator, 5 * MIB) for _ in range(4))
    for block in (first, third, second):
        allocator.free(block)
    assert take(allocator, 15 * MIB - 512).address == 0
    assert allocator.reserved == 20 * MIB


def test_a_segment_with_one_block_in_use_cannot_go_back() -> None:
    allocator = Allocator()
    first, second = take(allocator, 5 * MIB), take(allocator, 5 * MIB)
    allocator.free(first)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (5 * MIB, 20 * MIB)
    allocator.free(second)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


def test_pages_of_expandable_segments_go_back_around_a_block_in_use() -> None:
    allocator = Allocator(expandable=True)
    first, second, third = (take(allocator, size * MIB) for size in (50, 10, 60))
    allocator.free(first)
    allocator.free(third)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (10 * MIB, 20 * MIB)  # [40, 60) holds the 10 in use
    allocator.free(second)
    allocator.empty_cache()
    assert allocator.reserved == 0


@pytest.mark.parametrize("expandable", [False, True])
def test_retry_empties_the_cache_before_giving_up(expandable: bool) -> None:
    allocator = Allocator(capacity=100 * MIB, expandable=expandable)
    allocator.free(take(allocator, 60 * MIB))
    kept = take(allocator, 20 * MIB)
    allocator.free(kept)
    big = take(allocator, 100 * MIB)
    assert (big.size, allocator.retries) == (100 * MIB, 0 if expandable else 1)
    with pytest.raises(OutOfMemory) as refused:
        allocator.malloc(MIB)
    error = refused.value
    assert (error.size, error.allocated, error.reserved, error.capacity) == (MIB, 100 * MIB, 100 * MIB, 100 * MIB)
    assert "1,048,576 bytes were asked for" in str(error)
    assert allocator.retries == (1 if expandable else 2)


def test_expandable_segments_may_map_beyond_the_limit_but_not_beyond_the_card() -> None:
    size = 25 * MIB  # a segment of 26 MiB passes the limit's check, two pages of 20 MiB are mapped
    allocator = Allocator(limit=30 * MIB, expandable=True)
    allocator.malloc(size)
    assert allocator.reserved == 40 * MIB
    with pytest.raises(OutOfMemory):
        Allocator(capacity=30 * MIB, expandable=True).malloc(size)


def test_scattered_addresses_make_a_second_segment() -> None:
    allocator = Allocator(total=100 * MIB, expandable=True)  # 112.5 MiB of addresses, in pages 120
    first, second = take(allocator, 60 * MIB), take(allocator, 20 * MIB)
    allocator.free(first)
    assert take(allocator, 70 * MIB).address == 120 * MIB
    assert (allocator.reserved, allocator.retries) == (100 * MIB, 1)
    allocator.free(second)
    allocator.empty_cache()
    assert allocator.reserved == 80 * MIB


def test_trying_leaves_its_traces() -> None:
    allocator = Allocator(capacity=100 * MIB)
    allocator.free(take(allocator, 40 * MIB))
    assert allocator.can_malloc(60 * MIB)
    assert (allocator.allocated, allocator.reserved, allocator.peak_allocated) == (0, 100 * MIB, 60 * MIB)
    assert not allocator.can_malloc(101 * MIB)
    assert (allocator.reserved, allocator.retries) == (0, 1)


def test_freeing_twice_is_refused() -> None:
    allocator = Allocator()
    block = take(allocator, 512)
    allocator.free(block)
    with pytest.raises(ValueError, match="freed before"):
        allocator.free(block)


def test_peaks_start_again_from_what_is_held() -> None:
    allocator = Allocator()
    kept = take(allocator, 30 * MIB)
    allocator.free(take(allocator, 60 * MIB))
    allocator.reset_peaks()
    assert (allocator.peak_allocated, allocator.peak_reserved) == (30 * MIB, 90 * MIB)
    allocator.free(kept)
    assert allocator.peak_allocated == 30 * MIB


@given(st.integers(1, 2**40))
def test_segments_hold_what_they_are_made_for(size: int) -> None:
    rounded = round_up(size, 512)
    assert 0 <= rounded - size < 512
    assert segment_size(rounded) >= rounded
    assert segment_size(rounded) % (2 * MIB) == 0


@given(actions, caps, st.booleans())
def test_what_always_holds(course: list[int | None], capacity: int | None, expandable: bool) -> None:
    allocator = Allocator(capacity=capacity, expandable=expandable)
    peaks = (0, 0)

    def check(live: list[Block]) -> None:
        nonlocal peaks
        spans = sorted((block.address, block.address + block.size) for block in live)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert all(start % 512 == 0 for start, _ in spans)
        assert allocator.allocated == sum(block.size for block in live) <= allocator.reserved
        assert capacity is None or allocator.reserved <= capacity
        assert allocator.reserved % (2 * MIB) == 0
        assert allocator.allocated <= allocator.peak_allocated
        assert allocator.reserved <= allocator.peak_reserved
        assert allocator.peak_allocated >= peaks[0]
        assert allocator.peak_reserved >= peaks[1]
        peaks = allocator.peak_allocated, allocator.peak_reserved

    for block in play(allocator, course, check):
        allocator.free(block)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


@given(actions, st.booleans())
def test_a_cap_at_the_roomy_peak_changes_nothing(course: list[int | None], expandable: bool) -> None:
    roomy = Allocator(total=2**36, expandable=expandable)
    play(roomy, course)
    capped = Allocator(total=2**36, capacity=roomy.peak_reserved, expandable=expandable)
    play(capped, course)
    assert (capped.allocated, capped.reserved, capped.retries) == (roomy.allocated, roomy.reserved, 0)


@given(actions, caps, sizes, st.booleans())
def test_what_could_be_tried_can_be_had(
    course: list[int | None], capacity: int | None, size: int, expandable: bool
) -> None:
    allocator = Allocator(capacity=capacity, expandable=expandable)
    play(allocator, course)
    could = allocator.can_malloc(size)
    reserved, retries = allocator.reserved, allocator.retries
    try:
        allocator.malloc(size)
    except OutOfMemory:
        assert not could
    else:
        assert could
        assert (allocator.reserved, allocator.retries) == (reserved, retries)


@given(actions, st.integers(0, 400 * MIB))
def test_limit_and_capacity_are_one_without_expandable_segments(course: list[int | None], cap: int) -> None:
    by_limit, by_capacity = Allocator(limit=cap), Allocator(capacity=cap)
    play(by_limit, course)
    play(by_capacity, course)
    for name in ("allocated", "reserved", "peak_allocated", "peak_reserved", "retries"):
        assert getattr(by_limit, name) == getattr(by_capacity, name)
