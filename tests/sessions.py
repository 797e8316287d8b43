"""Terminal sessions in the documentation: found, run, and held against what is shown.

    python tests/sessions.py [PAGE …]

records anew what the sessions of these pages show, by default of all; look at the difference before you keep it.

A session is a block marked `console`.  Lines after `$ ` are commands, the others what they print; a line `…` stands for
any lines left out, and such output is not recorded anew.  Sessions of a page share one folder, where `examples` lies;
pictures they draw are kept in docs/images.  What sets up a machine is shown and not run: `.ci/run` does it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from planner import cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
GAP = "…"
PLANNER = ("vram-planner", "python")
SECONDS = re.compile(r"\b\d[\d.]* (?:ms|s|min|h)\b(?: \d[\d.]* (?:s|min)\b)*")
FIGURE = re.compile(r"\d[\d.,]*")
NEEDS = re.compile(r"needs ([\d.]+) GB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command and what the page shows of its output."""

    command: str
    shown: str

    @property
    def runs(self) -> bool:
        return self.command.startswith(PLANNER) and " -m venv " not in self.command


def steps(block: str) -> Iterator[Step]:
    """The steps of one session."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield Step(command=command, shown=shown)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def printed(command: str, folder: Path, cache: Path, columns: int = 80) -> str:
    """What a command prints on a terminal of so many columns; of what goes to stderr only our own sentence."""
    words = shlex.split(command)
    if words[-1] == "--help":  # nothing is computed, so that no process is needed
        return CliRunner(env={"COLUMNS": "80"}).invoke(cli.main, words[1:], prog_name="vram-planner").stdout
    words = [sys.executable, *(["-m", "planner"] if words[0] == "vram-planner" else []), *words[1:]]
    env = os.environ | {"XDG_CACHE_HOME": str(cache), "COLUMNS": str(columns), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False)
    if done.returncode not in (0, 3):
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return "".join(f"{line}\n" for line in (*said, *done.stdout.splitlines()))


def desk(place: Path) -> Path:
    """A folder to run a page's sessions in."""
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "examples").exists():
        (place / "examples").symlink_to(ROOT / "examples")
    return place


def masked(text: str) -> str:
    """Words without figures, durations, bars and the widths of lines and columns."""
    return " ".join(re.sub(r"[█-▏]+", "", FIGURE.sub("0", SECONDS.sub("TIME", text))).split())


def differs(shown: str, real: str) -> str:
    """What is shown and was not printed; empty where all of it was.  Bytes needed may be off by 5 %."""
    said, place = masked(real), 0
    for part in re.split(rf"^{GAP}$", shown, flags=re.MULTILINE):
        found = said.find(masked(part), place)
        if found < 0:
            return f"shown, but not printed:\n{part}"
        place = found + len(masked(part))
    if GAP not in shown.splitlines() and masked(shown) != said:
        return "not all of the output is shown"
    for one, other in zip(NEEDS.findall(shown), NEEDS.findall(real), strict=False):
        if abs(float(one) - float(other)) > 0.05 * float(other):
            return f"shown as {one} GB, which is {other} GB"
    return ""


def record(page: Path, cache: Path, folder: Path) -> None:
    """Write into a page what its sessions print now, and keep the pictures they draw."""

    def anew(block: re.Match[str]) -> str:
        return "".join(f"$ {step.command}\n{again(step)}" for step in steps(block[1]))

    def again(step: Step) -> str:
        if not step.runs:
            return step.shown
        sys.stderr.write(f"$ {step.command}\n")
        real = printed(step.command, folder, cache)
        return step.shown if GAP in step.shown.splitlines() else real

    page.write_text(BLOCK.sub(anew, page.read_text("utf-8")), "utf-8")
    for picture in folder.glob("*.svg"):
        shutil.copy(picture, ROOT / "docs/images")


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:] or map(str, pages())):
        with tempfile.TemporaryDirectory() as place:
            record(page.resolve(), Path(tempfile.gettempdir(), "vram-planner-sessions"), desk(Path(place)))
