"""README is true: commands exist and run, code fits the package, output is what is printed, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from plans import PLAN

import planner
from planner import auto, cli, profiles
from planner.request import Request

ROOT = Path(__file__).parent.parent
PAGES = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"),
    *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))),
)
README = (ROOT / "README.md").read_text("utf-8")
FIGURE = re.compile(r"[0-9][0-9.,]*")
BYTES = re.compile(r"needs ([0-9.]+) GB")


def blocks(kind: str, page: str = README) -> list[str]:
    """The fenced blocks of a page that are marked `kind`."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every call of our own command in README."""
    lines = "\n".join((*blocks("sh"), *blocks("console"))).replace("&&", "\n").splitlines()
    return [line.strip(" $") for line in lines if "vram-planner " in line]


def headings(page: str) -> set[str]:
    """The anchors a page has."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", page, re.M)}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the first command of README prints, with nothing cached."""
    install, command = blocks("sh")[0].strip().split(" && ")
    assert install == "pip install ."
    words = [sys.executable, "-m", "planner", *shlex.split(command)[1:]]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "80"}
    return subprocess.run(words, capture_output=True, encoding="utf-8", env=env, check=True).stdout


def masked(line: str) -> str:
    """A line without its figures and without the width of its columns."""
    return " ".join(FIGURE.sub("0", line).split())


def test_the_output_shown_is_printed(printed: str) -> None:
    (shown,) = blocks("text")
    said = [masked(line) for line in printed.splitlines()]
    missing = [line for line in shown.splitlines() if masked(line) not in said]
    assert not missing, f"README shows what is not printed:\n{printed}"


def test_the_peak_shown_is_the_peak_promised(printed: str) -> None:
    (shown,) = blocks("text")
    shown_peak, peak = (float(BYTES.findall(text)[0]) for text in (shown, printed))
    assert peak == pytest.approx(shown_peak, rel=0.02)


def test_set_up_is_two_commands() -> None:
    install, tests, *_ = blocks("sh")
    assert install.startswith("pip install . && vram-planner plan ")
    assert tests == "pip install '.[test]' && pytest\n"


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def plan(model: str, **given: Any) -> planner.Plan:
        asked.append((model, given))
        return PLAN

    monkeypatch.setattr(auto, "plan", plan)
    monkeypatch.setattr(importlib.import_module("planner.probe"), "probe", tuple)
    done = CliRunner().invoke(cli.main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    for model, given in asked:
        assert profiles.resolve(model).name == model
        given["request"].budget.resolve(given["device"])


def test_python_compiles() -> None:
    for page in PAGES:
        for block in blocks("python", (ROOT / page).read_text("utf-8")):
            compile(block, page, "exec")


def calls(name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse("\n".join(blocks("python")))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


@pytest.mark.parametrize("name", ["planner.auto_configure", "planner.plan"])
def test_python_asks_for_what_a_request_has(name: str) -> None:
    known = {field.name for field in fields(Request)} | {"device"}
    found = list(calls(name))
    assert found
    for call in found:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert given.keys() <= known
        literals = {key: ast.literal_eval(value) for key, value in given.items() if isinstance(value, ast.Constant)}
        Request.from_json(literals)


def test_python_names_what_the_package_has() -> None:
    for node in ast.walk(ast.parse("\n".join(blocks("python")))):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("planner.", "plan.")):
            owner, *path = ast.unparse(node).split(".")
            if owner == "planner":
                assert path[0] in planner.__all__
            else:
                assert path[0] in dir(planner.Plan) or path[0] in {field.name for field in fields(planner.Plan)}


def test_python_for_any_card_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second block as it stands, with nothing cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: dict[str, Any] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), seen)
    assert seen["plan"].promise.needed <= 12 * 10**9
    assert capsys.readouterr().out.startswith(f"{seen['plan'].promise.allocated} bytes, ['streaming'")


def test_every_command_is_listed() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", README.partition("## Use")[2].partition("\n## ")[0], re.MULTILINE)
    assert sorted(rows) == sorted(cli.COMMANDS)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150, "README sells and proves; detail goes to docs/"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (ROOT / page).parent / file if file else ROOT / page
        assert there.exists(), target
        assert not anchor or anchor in headings(there.read_text("utf-8")), target


def test_counts_are_right() -> None:
    pipelines, cards = (len(list((profiles.shipped() / kind).glob("*.toml"))) for kind in ("pipelines", "gpus"))
    assert f"Profiles of {pipelines} pipelines and {cards} cards" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"one of {pipelines} shipped pipelines" in README


def test_paths_named_in_prose_exist() -> None:
    for page in PAGES:
        for path in re.findall(
            r"`((?:tests|profiles|planner|benchmarks|\.ci)/[\w./-]*)`", (ROOT / page).read_text("utf-8")
        ):
            assert (ROOT / path).exists(), f"{page} names {path}"


def test_every_room_is_described() -> None:
    house = Path(planner.__file__).parent
    rooms = {file.relative_to(house).parts[0].removesuffix(".py") for file in house.rglob("*.py")}
    table = (ROOT / "ARCHITECTURE.md").read_text("utf-8").partition("## Rooms")[2].partition("\n## ")[0]
    described = {
        name.rstrip("/") for row in re.findall(r"^\|([^|]*)\|", table, re.M) for name in re.findall(r"`([\w/]+)`", row)
    }
    assert described == rooms - {"__init__", "__main__"}


def test_seconds_are_what_was_measured() -> None:
    measured = (ROOT / "benchmarks/results/time.md").read_text("utf-8")
    rows, half, most = re.findall(r"\| held out, all \| (\d+) \| ([\d.]+%) \| ([\d.]+%)", measured)[0]
    for page in ("README.md", "docs/limits.md"):
        text = " ".join((ROOT / page).read_text("utf-8").split())
        for said in (f"{rows} published timings", f"within {half[:-1]} %", f"{most[:-1]} %"):
            assert said in text, f"{page} does not say {said}"


def test_accuracy_is_what_was_measured() -> None:
    results = ROOT / "benchmarks/results"
    if not results.exists():
        pytest.skip("no results are kept here")
    pages = [(results / name).read_text("utf-8").splitlines() for name in ("accuracy.md", "published.md")]
    rows = ("| allocated", "| reserved", "| published", "| said")
    shown = [line for line in README.splitlines() if line.startswith(rows)]
    assert len(shown) == 5
    assert sum(line in README.partition("\n## ")[0] for line in shown) == 3, "the first screen proves"
    for line in shown:
        assert any(line in page for page in pages), f"README says {line}, which was not measured"


def test_checks_run_what_readme_says() -> None:
    """`.ci/run` takes the first two blocks from README itself, and asks for Python as pyproject does."""
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert "readme 1" in script
    assert "readme 2" in script
    assert blocks("sh")[2].strip().removeprefix("pytest ") in script
    needs = profiles.read_toml(ROOT / "pyproject.toml")["project"]["requires-python"]
    assert needs.removeprefix(">=") in README
