"""How long the allocator's replay takes, per malloc/free pair and for 100,000 events.

    python benchmarks/allocator_speed.py [--pairs 50000] [--repeat 5]

Three courses: `blocks` nests like the modules of a network (a few tensors live, sizes recur), `random` frees in no
order with hundreds of tensors live, `capped` is the same under a cap that empties the cache now and then.
"""

from __future__ import annotations

import argparse
import random
import time

from planner.allocator import Allocator, OutOfMemory

MIB = 2**20
Step = tuple[int, int]  # a tensor's number and its bytes; no bytes: it is freed


def blocks(pairs: int) -> list[Step]:
    """Transformer-like blocks: a hidden state lives on while short-lived activations come and go."""
    block = [18 * MIB, 4_096, 54 * MIB, 18 * MIB, 18 * MIB, 72 * MIB, 300_000, 72 * MIB, 18 * MIB]
    steps: list[Step] = []
    live: list[int] = []
    for number in range(pairs):
        steps.append((number, block[number % len(block)]))
        live.append(number)
        if len(live) > 5:
            steps.append((live.pop(-3), 0))
    return steps + [(number, 0) for number in live]


def scattered(pairs: int, *, live_at_most: int = 400) -> list[Step]:
    """Sizes from 512 B to 64 MiB, freed in random order."""
    rng = random.Random(0)
    steps: list[Step] = []
    live: list[int] = []
    for number in range(pairs):
        steps.append((number, 2 ** rng.randint(9, 25) + rng.randint(0, MIB)))
        live.append(number)
        if len(live) > live_at_most:
            steps.append((live.pop(rng.randrange(len(live))), 0))
    return steps + [(number, 0) for number in live]


def seconds(steps: list[Step], allocator: Allocator) -> float:
    """Wall time of one replay; requests that do not fit are left out, as a verifier would."""
    held = {}
    begin = time.perf_counter()
    for number, size in steps:
        if size == 0:
            allocator.free(held.pop(number, None))
            continue
        try:
            held[number] = allocator.malloc(size)
        except OutOfMemory:
            continue
    return time.perf_counter() - begin


def main() -> None:
    """Print the best of a few replays for each course."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    nested, mixed = blocks(args.pairs), scattered(args.pairs)
    print(f"{'course':20}{'µs per pair':>12}{'s per 100k events':>20}{'retries':>10}")
    for name, steps, cap, expandable in (
        ("blocks", nested, None, False),
        ("blocks expandable", nested, None, True),
        ("random", mixed, None, False),
        ("random expandable", mixed, None, True),
        ("capped", mixed, 2_100 * MIB, False),
    ):
        best, retries = float("inf"), 0
        for _ in range(args.repeat):
            allocator = Allocator(capacity=cap, expandable=expandable)
            best = min(best, seconds(steps, allocator))
            retries = allocator.retries
        print(f"{name:20}{best / args.pairs * 1e6:12.2f}{best / len(steps) * 1e5:20.3f}{retries:10}")


if __name__ == "__main__":
    main()
