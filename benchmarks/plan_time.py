"""How long planning takes, without a GPU: recording, a warm plan as a whole process, and memory.

python benchmarks/plan_time.py > benchmarks/results/plan_time.md
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from planner import profiles
from planner.program import Variant
from planner.programs import FromProfile, Programs
from planner.request import Request
from planner.techniques.vae_tiling import LADDER

STORIES = (
    ("sdxl", {"height": 1024, "width": 1024}, (), 3.0),
    ("flux1-dev", {"height": 1024, "width": 1024}, (), 3.0),
    ("sd15", {"height": 2224, "width": 3840, "steps": 20}, LADDER, 5.0),
    ("wan2.1-t2v-1.3b", {"height": 480, "width": 832, "frames": 81}, (), 6.0),
)
WARM = ("sd15", "--gpu", "rtx-3070", "--budget", "8GB", "--width", "3840", "--height", "2224", "--steps", "20")


def recorded(model: str, shape: dict[str, int], tiles: tuple[int, ...]) -> float:
    """Seconds to record the program and its variants; building the ghost included, imports not."""
    profile = profiles.find(model)
    usual = profile.defaults
    request = Request(**{"steps": usual.steps, "guidance": usual.guidance, **shape}, extra=usual.extra)
    FromProfile(profile, None).ghost()  # imports the classes
    start = time.perf_counter()
    programs = Programs(FromProfile(profile, None), request, None)
    for tile in (0, *tiles):
        programs.get(Variant(tile=tile))
    return time.perf_counter() - start


def warm() -> float:
    """Seconds of `vram-planner plan` as a process, its program in the cache; the best of five."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        command = [sys.executable, "-m", "planner", "plan", *WARM]
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])


def main() -> None:
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
    print(f"| `vram-planner plan {' '.join(WARM)}`, warm, whole process | {warm():.2f} s | 0.7 s |")


if __name__ == "__main__":
    main()
