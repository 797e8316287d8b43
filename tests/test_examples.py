"""The examples run, on a pipeline of a few thousand weights; the notebook prints what it shows."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sessions
from plans import PLAN

import planner

EXAMPLES = Path(__file__).parent.parent / "examples"
Run = Callable[[str], str]
CALLS = {
    "tiny_pipeline.py": "another",
    "configure.py": "tiny-sd",
    "fleet.py": "tiny-sd rtx-3070=0.2 rtx-4090=0.5",
    "fallback.py": "tiny-sd 8GB 64",
}
SAID = {
    "tiny_pipeline.py": "another: a Stable Diffusion pipeline",
    "configure.py": "promised",
    "fleet.py": "dollars an image",
    "fallback.py": "will do, with",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny-sd` in it, and a cache."""
    folder = tmp_path_factory.mktemp("examples")
    made = runpy.run_path(str(EXAMPLES / "tiny_pipeline.py"))["pipeline"]()
    made.save_pretrained(folder / "tiny-sd")
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def called(name: str) -> str:
        monkeypatch.chdir(place)
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        monkeypatch.setattr(sys, "argv", [name, *shlex.split(CALLS[name])])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return called


def test_every_example_is_run_and_listed() -> None:
    assert CALLS.keys() == {file.name for file in EXAMPLES.glob("*.py")}
    listed = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text("utf-8"))
    assert sorted(listed) == sorted(file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb"))


@pytest.mark.parametrize("name", CALLS)
def test_examples_run(name: str, run: Run) -> None:
    assert SAID[name] in run(name)


def test_where_nothing_fits_the_example_asks_for_what_would(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def plan(model: str, **given: object) -> planner.Plan:
        asked.append(given["budget"])
        if len(asked) == 1:
            over, enough = 10**9, 9 * 10**9
            raise planner.Infeasible(leanest=PLAN, phase="unet", over=over, smallest_budget=enough, largest_size="8×8")
        return PLAN

    monkeypatch.setattr(planner, "plan", plan)
    assert "8GB is 1,000 MB short in unet; 8×8 would fit." in run("fallback.py")
    assert asked == ["8GB", 9 * 10**9]


def test_the_notebook_prints_what_it_shows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in order; what they printed when the notebook was kept is what they print now, but for figures."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    cells = [cell for cell in json.loads((EXAMPLES / "memory.ipynb").read_text("utf-8"))["cells"] if is_code(cell)]
    seen: dict[str, object] = {}
    for cell in cells:
        printed: list[str] = []
        seen["print"] = lambda *words, kept=printed: kept.append(" ".join(map(str, words)) + "\n")
        exec("".join(cell["source"]), seen)
        shown = "".join(text for output in cell["outputs"] for text in output.get("text", []))
        assert sessions.masked(shown) == sessions.masked("".join(printed))
    assert any("text/html" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert isinstance(seen["plan"], planner.Plan)


def is_code(cell: dict[str, object]) -> bool:
    return cell["cell_type"] == "code"
