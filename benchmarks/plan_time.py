"""How long planning takes, without a GPU: recording, whole processes on recorded programs, the solver, and memory.

    python benchmarks/plan_time.py [--solver] > benchmarks/results/plan_time.md

Processes are timed twice: on a card that was not asked about before, and asked the same again.  `--solver` adds the
solver's own time for every shipped pipeline, which are all recorded for it.  Seconds are of the processor, children
included, so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from planner import choose, profiles
from planner.cards import card
from planner.device import Device
from planner.errors import PlannerError
from planner.program import Variant
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.study import opened
from planner.techniques.tiles import LADDER

STORIES = (
    ("sdxl", {"height": 1024, "width": 1024}, (), 3.0),
    ("flux1-dev", {"height": 1024, "width": 1024}, (), 3.0),
    ("sd15", {"height": 2224, "width": 3840, "steps": 20}, LADDER, 5.0),
    ("wan2.1-t2v-1.3b", {"height": 480, "width": 832, "frames": 81}, (), 6.0),
)
CARDS = (
    *("a100-pcie-40gb", "a100-sxm4-80gb", "h100-sxm", "l4", "l40s", "t4", "a10g", "rtx-a6000", "rtx-2060", "rtx-2070"),
    *("rtx-2080-ti", "rtx-3060-12gb", "rtx-3070", "rtx-3080-10gb", "rtx-3090", "rtx-4060-8gb", "rtx-4070", "rtx-4080"),
    *("rtx-4090", "rtx-5090"),
)
PROCESSES = (
    ("plan sd15 --gpu rtx-3070 --budget 8GB --width 3840 --height 2224 --steps 20", 0.7),
    ("plan sdxl --gpu rtx-3070 --budget 8GB", 0.7),
    ("plan flux1-dev --gpu rtx-4080 --budget 16GB", 0.7),
    (f"compare sdxl --gpu {' --gpu '.join(CARDS)}", 5.0),
    (f"compare flux1-dev --gpu {' --gpu '.join(CARDS)}", 5.0),
    ("frontier sdxl --gpu rtx-4090", 5.0),
    ("frontier flux1-dev --gpu rtx-4090", 5.0),
)
"""Commands, and the seconds they should take once their programs are recorded."""
SOLVER = 0.1
"""Seconds the solver may take."""


def recorded(model: str, shape: dict[str, int], tiles: tuple[int, ...]) -> float:
    """Seconds of the processor to record the program and its variants; building the ghost included, imports not."""
    profile = profiles.find(model)
    usual = profile.defaults
    request = Request(**{"steps": usual.steps, "guidance": usual.guidance, **shape}, extra=usual.extra)
    FromProfile(profile, None).ghost()  # imports the classes
    start = time.process_time()
    programs = Programs(FromProfile(profile, None), request, None)
    for tile in (0, *tiles):
        programs.get(Variant(tile=tile))
    return time.process_time() - start


def took(command: str, cache: str) -> float:
    """Seconds of the processor for a command as a process of its own, its byte code kept as an installer leaves it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(
        [sys.executable, "-m", "planner", *command.split()], env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timed(command: str) -> tuple[float, float]:
    """With programs and cuDNN's answers on disk and no plan made of them, and asked again; the better of two each."""
    with tempfile.TemporaryDirectory() as cache:
        took(command, cache)
        first = []
        for _ in range(2):
            shutil.rmtree(Path(cache, "vram-planner", "programs", "answers"))
            first.append(took(command, cache))
        return min(first), min(took(command, cache) for _ in range(2))


def solving(model: str, card: Device, cache: Path) -> float:
    """Seconds the solver takes for a plan on half of the card, what it asks of others not counted."""
    spent: list[float] = []
    under_way: list[int] = []

    def counted(work: Callable[..., Any], sign: int) -> Callable[..., Any]:
        """Its seconds are the solver's, or are not, unless those of what called it are so already."""

        def measured(*args: Any) -> Any:
            start, counts = time.process_time(), sign != (under_way[-1] if under_way else -1)
            under_way.append(sign)
            try:
                return work(*args)
            finally:
                under_way.pop()
                spent.append(counts * sign * (time.process_time() - start))

        return measured

    class Apart(choose.solve.Search):
        def __init__(self, problems: Any, accept: Any, *others: Any) -> None:
            exact, *more = (counted(others[0], -1), *others[1:]) if others else (choose.solve.as_offered,)
            super().__init__(problems, counted(accept, -1), exact, *more)

    asked = {name: counted(getattr(choose.solve, name), 1) for name in ("found", "undercut", "evidence")}
    with patch.multiple(choose.solve, Search=Apart, **asked), suppress(PlannerError):
        opened(model, Request(fidelity=Fidelity.LOSSY), cache=cache).attempt(card, budget=card.total // 2)
    return sum(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", action="store_true", help="time the solver on every shipped pipeline, too")
    asked = parser.parse_args()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    print(f"# How long planning takes\n\n`python {Path(__file__).parent.name}/{Path(__file__).name}`; {libraries};")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, no GPU.\n")
    print("| what | measured | bound |\n|---|---:|---:|")
    for model, shape, tiles, bound in STORIES:
        size = "×".join(str(shape[name]) for name in ("width", "height"))
        extra = f", tiles of {', '.join(map(str, tiles))} px" if tiles else ""
        extra += f", {shape['frames']} frames" if "frames" in shape else ""
        print(f"| recording {model} {size}{extra} | {recorded(model, shape, tiles):.2f} s | {bound:.1f} s |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| memory of this process after all of these | {peak:.2f} GB | 1.5 GB |")
    print("\nOn recorded programs, with what cuDNN answered, seconds of the processor for the whole process:\n")
    print("| command | asked first | asked again | bound |\n|---|---:|---:|---:|")
    for command, bound in PROCESSES:
        first, again = timed(command)
        print(f"| `vram-planner {command}` | {first:.2f} s | {again:.2f} s | {bound:.1f} s |", flush=True)
    if asked.solver:
        print_solver()


def print_solver() -> None:
    """The solver's own time over all shipped pipelines."""
    with tempfile.TemporaryDirectory() as cache:
        taken = {name: solving(name, card("rtx-4080"), Path(cache)) for name in profiles.names()}
    most = max(taken, key=lambda name: taken[name])
    middle, over = statistics.median(taken.values()), sum(seconds > SOLVER for seconds in taken.values())
    print(
        f"\nThe solver itself, without pricing and the allocator, for {len(taken)} shipped pipelines with all "
        f"techniques, `lossy` included, on half of an RTX 4080: {middle * 1e3:.1f} ms in the "
        f"median, at most {taken[most] * 1e3:.0f} ms ({most}); {over} over {SOLVER * 1e3:.0f} ms."
    )


if __name__ == "__main__":
    main()
