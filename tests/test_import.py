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
    *("errors", "units", "device", "request", "host", "hub", "profiles", "cards", "probe"),
    *("program", "store", "ghost", "strides", "signature", "recorder", "dispatch", "replay", "trace"),
    *("blocks", "allocator", "workspace", "attention", "snapshot", "offload", "techniques"),
    *("pace", "time", "cost", "rehearsal", "solve", "plan", "apply", "verify", "explain", "auto", "cli"),
)
"""In the order of the data; a package is one room."""
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
    unplaced = {room_of(file) for file in FILES} - set(ROOMS)
    assert not unplaced, f"give {sorted(unplaced)} a place in ROOMS, behind all that they import"


@pytest.mark.parametrize(
    "file", [file for file in FILES if room_of(file) in ROOMS], ids=lambda file: str(file.relative_to(HOUSE))
)
def test_imports_point_upstream(file: Path) -> None:
    room = room_of(file)
    known = set(ROOMS[: ROOMS.index(room) + 1])
    downstream = set(imported(ast.parse(file.read_text()))) - known
    assert not downstream, f"{room} lies before {sorted(downstream)} and cannot know them"


@pytest.mark.parametrize("module", ["planner", *(f"planner.{room}" for room in ROOMS[: ROOMS.index("program") + 1])])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
