"""The allocator's replay against PyTorch's own allocator on the virtual GPU, to the byte, after every event."""

from __future__ import annotations

import random

import pytest
from rig import Server

from planner.allocator import Allocator, OutOfMemory

MIB, GIB = 2**20, 2**30
EVENTS = 2500

Event = tuple[str, int, int]  # malloc, free or empty_cache; the tensor's number; its bytes


def in_torch(events: list[Event], limit: int, expandable: bool) -> list[list[int]]:
    """What PyTorch's statistics do say after each event."""
    import torch

    torch.cuda.memory._set_allocator_settings(f"expandable_segments:{expandable}")
    if limit:
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    live, rows = {}, []
    for kind, number, size in events:
        refused = 0
        if kind == "malloc":
            try:
                live[number] = torch.empty(size, dtype=torch.uint8, device="cuda")
            except torch.OutOfMemoryError:
                refused = 1
        elif kind == "free":
            live.pop(number, None)
        else:
            torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        rows.append([*held, *peaks, torch.cuda.memory_stats().get("num_alloc_retries", 0), refused])
    return rows


def some_size(rng: random.Random) -> int:
    """From nothing to 700 MiB, about a third of them round."""
    kind = rng.random()
    if kind < 0.01:
        return 0
    if kind < 0.45:
        size = rng.randint(1, 2 ** rng.randint(9, 20))
    elif kind < 0.75:
        size = rng.randint(MIB, 12 * MIB)
    else:
        size = rng.randint(10 * MIB, 100 * MIB) if kind < 0.95 else rng.randint(100 * MIB, 700 * MIB)
    return size if rng.random() < 0.7 else max(512, size // (MIB // 2) * (MIB // 2))


def course(seed: int, held_at_most: int) -> list[Event]:
    """Requests and frees in random order, which together would hold up to `held_at_most` bytes."""
    rng = random.Random(seed)
    live: dict[int, int] = {}
    held = 0
    events: list[Event] = []
    for number in range(EVENTS):
        chance = rng.random()
        if live and (held > held_at_most * rng.random() or chance < 0.35):
            freed = rng.choice(list(live))
            held -= live.pop(freed)
            events.append(("free", freed, 0))
        elif chance < 0.355:
            events.append(("empty_cache", 0, 0))
        else:
            live[number] = some_size(rng)
            held += live[number]
            events.append(("malloc", number, live[number]))
    return events


def replayed(events: list[Event], allocator: Allocator) -> list[list[int]]:
    """What PyTorch's statistics should say after each event."""
    live, rows = {}, []
    for kind, number, size in events:
        refused = 0
        if kind == "malloc":
            try:
                live[number] = allocator.malloc(size)
            except OutOfMemory:
                refused = 1
        elif kind == "free":
            allocator.free(live.pop(number, None))
        else:
            allocator.empty_cache()
        held = [allocator.allocated, allocator.reserved]
        peaks = [allocator.peak_allocated, allocator.peak_reserved]
        rows.append([*held, *peaks, allocator.retries, refused])
    return rows


@pytest.mark.parametrize("expandable", [False, True], ids=["segments", "expandable"])
@pytest.mark.parametrize(
    ("seed", "held", "total", "limit"),
    [
        pytest.param(1, 6 * GIB, 40 * GIB, 0, id="roomy"),
        pytest.param(11, 6 * GIB, 3 * GIB, 0, id="small card"),
        pytest.param(38, 20 * GIB, 2 * GIB + 12_345, 0, id="hopeless card"),
        pytest.param(18, 8 * GIB, 24 * GIB, 2 * GIB + 3 * MIB + 777, id="limit"),
        pytest.param(19, 20 * GIB, 5 * GIB, 4 * GIB + 3 * MIB + 777, id="limit near the card"),
    ],
)
def test_every_event(vgpu: Server, seed: int, held: int, total: int, limit: int, expandable: bool) -> None:
    events = course(seed, held)
    allocator = Allocator(total=total, limit=limit or None, expandable=expandable)
    predicted = replayed(events, allocator)
    actual = vgpu.script(in_torch, {"events": events, "limit": limit, "expandable": expandable}, vram=total)
    for number, (mine, torch) in enumerate(zip(predicted, actual, strict=True)):
        assert mine == torch, f"event {number}: {events[number]}"
