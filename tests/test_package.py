"""The package from outside: what a wheel and a source archive hold, the public surface, the tree of errors."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

import planner
from planner import errors, profiles
from planner.errors import PlannerError

ROOT = Path(__file__).parent.parent


def built(what: str, folder: Path, source: Path = ROOT) -> Path:
    """The archive that hatchling's `build_wheel` or `build_sdist` makes of this checkout, or of another source."""
    code = f"import hatchling.build as hatchling; hatchling.{what}({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(built("build_wheel", tmp_path_factory.mktemp("wheel")))


def test_wheel_holds_the_house_and_the_profiles(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "planner").rglob("*.py")}
    shipped = {f"planner/shipped/{file.relative_to(ROOT / 'profiles')}" for file in (ROOT / "profiles").rglob("*.toml")}
    assert held == sources | shipped | {"planner/py.typed"}


def test_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    about = message_from_bytes(wheel.read(name))
    assert about["Name"] == "vram-planner"
    assert about["Version"] == planner.__version__
    assert about["License-Expression"] == "Apache-2.0"
    entry = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "vram-planner = planner.cli:main" in entry


def test_wheel_finds_its_profiles_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "from planner import profiles; print(profiles.shipped(), *profiles.names())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    folder, *names = done.stdout.split()
    assert Path(folder) == tmp_path / "planner/shipped"
    assert tuple(names) == profiles.names()


def test_source_archive_can_be_built_and_tested(tmp_path: Path) -> None:
    with tarfile.open(built("build_sdist", tmp_path)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("pyproject.toml", "README.md", "LICENSE", "planner/py.typed", "tests/test_package.py")
    assert held >= {
        *wanted,
        "profiles/pipelines/sd15.toml",
        "profiles/gpus/rtx-3070.toml",
        "tests/virtual_gpu/build.sh",
    }
    assert not {name for name in held if name.endswith((".so", ".pyc")) or name.startswith((".venv", ".cache"))}


def test_module_and_script_say_their_version() -> None:
    for command in ([sys.executable, "-m", "planner"], [str(Path(sys.executable).with_name("vram-planner"))]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"vram-planner, version {planner.__version__}\n"


def kind(name: str) -> int:
    """Constants, then classes, then functions."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2


def test_public_surface_is_sorted_and_whole() -> None:
    assert planner.__all__ == sorted(planner.__all__, key=lambda name: (kind(name), name))
    tree = ast.parse(Path(planner.__file__).read_text("utf-8"))
    typed = {alias.asname or alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             and (node.module or "").startswith("planner.") for alias in node.names}  # fmt: skip
    entered = {name: f"planner.{room}" for room, names in planner._ROOMS.items() for name in names}
    assert typed == entered, "what types are checked by, and where names are looked up"
    assert set(planner.__all__) == set(entered)
    assert set(planner.__all__) <= set(dir(planner))
    with pytest.raises(AttributeError, match="'plans'"):
        planner.plans  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "first", ["import planner.plan, planner.probe", "from planner.plan import Plan", "import planner.cli"]
)
def test_functions_keep_their_names_beside_rooms_of_the_same(first: str) -> None:
    code = f"{first}; import planner, types; from planner import plan, probe; print(type(planner.plan), type(probe))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "<class 'function'> <class 'function'>\n"


def test_importing_takes_no_time() -> None:
    """At most 0.15 s of the processor; the best of five, for other work on the machine makes each longer."""
    code = "import time; start = time.process_time(); import planner; print(time.process_time() - start)"
    took = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(5)]
    assert min(map(float, took)) <= 0.15


def members() -> Iterator[tuple[str, object]]:
    for name in planner.__all__:
        value = getattr(planner, name)
        if kind(name):
            yield name, value
        for inner, member in vars(value).items() if inspect.isclass(value) else ():
            if not inner.startswith("_") and (inspect.isfunction(member) or isinstance(member, property | classmethod)):
                yield f"{name}.{inner}", member


@pytest.mark.parametrize(("name", "value"), list(members()), ids=lambda value: value if isinstance(value, str) else "")
def test_public_surface_is_documented(name: str, value: object) -> None:
    said = inspect.getdoc(value) or ""
    assert said.strip(), f"{name} has no docstring"
    assert not said.startswith(f"{name}("), f"{name} has only the docstring that dataclasses make"


LAID_OUT = "planner.web.page"
"""The one room that imports the extra `app` at its top."""


def test_errors_are_drawn_as_they_are() -> None:
    """Every error the planner raises on purpose stands in the tree at the top of errors.py, below its parent."""
    for room in pkgutil.walk_packages(planner.__path__, "planner."):
        if room.name != LAID_OUT or importlib.util.find_spec("gradio"):
            importlib.import_module(room.name)
    drawn = dict(parents(errors.__doc__ or ""))
    real = {error.__name__: error.__bases__[0].__name__ for error in below(PlannerError)}
    assert drawn == real


def parents(text: str) -> Iterator[tuple[str, str]]:
    """Each error of a drawn tree with the one it hangs from."""
    path: list[str] = ["PlannerError"]
    for bars, name in re.findall(r"^    ((?:│   )*)[├└]── (\w+)", text, re.MULTILINE):
        depth = len(bars) // 4
        path[depth + 1 :] = [name]
        yield name, path[depth]


def below(error: type[Exception]) -> Iterator[type[Exception]]:
    for child in error.__subclasses__():
        yield child
        yield from below(child)
