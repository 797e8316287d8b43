"""Importing costs little, and imports point one way: each room knows only those before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import planner

HOUSE = Path(planner.__file__).parent
ROOMS = (
    *(
        "errors",
        "plain",
        "quiet",
        "collector",
        "units",
        "sizes",
        "device",
        "request",
        "host",
        "hub",
        "ggml",
        "profiles",
        "tasks",
    ),
    *("calibration", "cards", "probe"),
    *(
        "kernels",
        "events",
        "program",
        "store",
        "standin",
        "packed",
        "quantizable",
        "fourbit",
        "eightbit",
        "rounded",
        "filed",
        "blueprint",
        "streamable",
        "groupable",
        "cached",
    ),
    *("holding", "double", "ghost", "strides", "reduction", "metas", "composites", "signature"),
    *(
        "recorder",
        "dispatch",
        "effects",
        "replay",
        "casting",
        "arguments",
        "trace",
        "offload",
        "aside",
        "numbering",
        "streaming",
    ),
    *("group_hooks", "group_offload", "techniques", "settings", "programs", "lessons"),
    *(
        "blocks",
        "allocator",
        "cudnn",
        "answers",
        "workspace",
        "attention",
        "efficiency",
        "pace",
        "clock",
        "cost",
        "outline",
    ),
    *("score", "rehearsal", "precedents", "census", "samples", "calibrate"),
    *("solve", "absent", "demands", "pricing", "scenes", "choose", "plan", "limits", "reasons", "study", "surveys"),
    "minimum",
    *("refresh", "apply", "loading", "snapshot"),
    *(
        "folding",
        "snippet",
        "verify",
        "prose",
        "meanings",
        "explain",
        "tables",
        "schema",
        "printed",
        "drawing",
        "raster",
        "pictures",
        "report",
        "auto",
        "web",
        "cli",
        "__main__",
    ),
)
"""In the order of the data; a package is one room.  ARCHITECTURE.md says what each is for."""
DOORS = {("plan", "apply"), ("plan", "explain"), ("plan", "report"), ("plan", "verify")}
"""`plan.apply(pipe)`, `plan.explain()` and `plan.verify(run)` open later rooms, and only when called."""
RECORDING = {
    *("fourbit", "eightbit", "rounded", "filed", "blueprint", "double", "ghost", "metas", "composites", "signature"),
    *("recorder", "effects", "dispatch", "replay", "casting", "trace", "settings"),
}
"""Rooms that work on tensors and import torch; others enter them only when something must be recorded."""
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "pynvml", "numpy"}


def room_of(file: Path) -> str:
    return file.relative_to(HOUSE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Rooms that a module's import statements name, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "planner":
            modules = [f"planner.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        for module in modules:
            package, _, inner = module.partition(".")
            assert package, f"line {node.lineno}: write imports in full, from planner on"
            if package == "planner" and inner and not inner.startswith("__"):
                yield inner.partition(".")[0]


FILES = sorted(file for file in HOUSE.rglob("*.py") if file != HOUSE / "__init__.py")


def test_every_room_has_its_place_in_the_order() -> None:
    found = {room_of(file) for file in FILES}
    assert found <= set(ROOMS), f"give {sorted(found - set(ROOMS))} a place in ROOMS, behind all that they import"
    assert found >= set(ROOMS), f"take {sorted(set(ROOMS) - found)} out of ROOMS"


@pytest.mark.parametrize(
    "file", [file for file in FILES if room_of(file) in ROOMS], ids=lambda file: str(file.relative_to(HOUSE))
)
def test_imports_point_upstream(file: Path) -> None:
    room = room_of(file)
    known = set(ROOMS[: ROOMS.index(room) + 1])
    inner = {later for earlier, later in DOORS if earlier == room}
    tree = ast.parse(file.read_text())
    outer = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    assert not inner & set(imported(outer)), f"{room} opens {sorted(inner)} inside functions only"
    downstream = set(imported(tree)) - known - inner
    assert not downstream, f"{room} lies before {sorted(downstream)} and cannot know them"


def test_importing_loads_nothing_heavy() -> None:
    light = [f"planner.{room}" for room in ROOMS if room not in RECORDING]
    code = f"""
import importlib, sys
for module in {["planner", *light]}:
    importlib.import_module(module)
    if found := sorted({HEAVY} & set(sys.modules)):
        sys.exit(f"{{module}} loads {{found}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
