"""The wheel in an environment of its own: it plans outside the checkout, and its types serve a strict client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
from test_package import ROOT, built

import planner

CLIENT = """
from collections.abc import Mapping
from typing import Any

import planner

def choose(pipe: Any) -> planner.Plan | None:
    card: planner.Device = planner.card("rtx-3070")
    try:
        plan = planner.plan("sd15", device=card, budget="8GB", techniques=planner.default_techniques())
        planner.auto_configure(pipe, budget="8GB", height=512, width=512).revert(pipe)
    except planner.Infeasible as error:
        smallest: int = error.smallest_budget
        return error.leanest if smallest < card.total else None
    except planner.PlannerError:
        return None
    written: Mapping[str, Any] = plan.to_json()
    seconds: list[float] = [row.plan.promise.seconds for row in planner.compare("sd15", [card]) if row.plan]
    return planner.Plan.from_json(written) if seconds else plan
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose environment holds the wheel that the source archive makes, and nothing else."""
    place = tmp_path_factory.mktemp("clean")
    with tarfile.open(built("build_sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        archive.extractall(place, filter="data")
    (source,) = place.iterdir()
    file = built("build_wheel", tmp_path_factory.mktemp("wheel-of-sdist"), source)
    venv.create(place / "env", with_pip=False)
    python = place / "env/bin/python"
    (packages,) = (place / "env/lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(packages)]
    subprocess.run([*pip, str(file)], check=True, capture_output=True)
    return python


def outside(python: Path, *words: str, cwd: Path, script: bool = False) -> subprocess.CompletedProcess[str]:
    """The installed package, run far from the checkout, with the dependencies of this interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"PYTHONPATH": sysconfig.get_path("purelib"), "HOME": str(cwd), "XDG_CACHE_HOME": str(cwd / "cache")}
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    env["PYTHONPATH"] = f"{packages}{os.pathsep}{env['PYTHONPATH']}"
    start = [str(packages / "bin/vram-planner")] if script else ["-m", "planner"]
    return subprocess.run([str(python), *start, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_installed_package_plans_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    said = outside(installed, "--version", cwd=tmp_path)
    assert said.stdout == f"vram-planner, version {planner.__version__}\n", said.stderr
    words = ("plan", "sd15", "--gpu", "rtx-3070", "--height", "64", "--width", "64", "--steps", "1", "--json")
    done = outside(installed, *words, cwd=tmp_path, script=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert planner.Plan.from_json(done.stdout).pipeline == "StableDiffusionPipeline"
    schema = outside(installed, "schema", "plan", cwd=tmp_path)
    assert json.loads(schema.stdout) == json.loads((ROOT / "docs/schemas/plan.json").read_text("utf-8"))


def test_types_of_the_installed_package_serve_a_strict_client(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for words, good in ((CLIENT, True), (CLIENT.replace("smallest: int", "smallest: str"), False)):
        (tmp_path / "client.py").write_text(words)
        strict = [
            "--strict",
            "--cache-dir",
            str(tmp_path / "cache"),
            "--python-executable",
            str(installed),
            "client.py",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "mypy", *strict], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == good, done.stdout
