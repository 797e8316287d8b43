"""The documentation runs: its Python page by page, its terminal sessions as they are shown, its links and names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import sessions
import terminals
import torch
from rich.cells import cell_len
from techniques import tiny

import planner
from planner import auto, cli, profiles
from planner.snapshot import snapshot
from planner.techniques import DEFAULT

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def python(page: str) -> list[str]:
    return blocks(page, "python")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that all sessions share."""
    return tmp_path_factory.mktemp("cache")


def test_a_technique_of_ones_own(tmp_path: Path, monkeypatch: Any) -> None:
    pipe = tiny.stable_diffusion_xl(tmp_path).to(torch.float16)
    monkeypatch.setattr(auto, "card_for", lambda _: planner.card("rtx-3070"))
    before, seen = snapshot(pipe), {"pipe": pipe}
    for block in python("adding.md"):
        exec(block, seen)
    plan: Any = seen["plan"]
    assert plan.option("no_upcast")
    usual = planner.plan(pipe, device=planner.card("rtx-3070"), budget="8GB", height=512, width=512, steps=2)
    assert plan.promise.allocated < usual.baseline.allocated
    assert before.difference(snapshot(pipe)) == ()
    assert pipe.vae.config.force_upcast


def test_profiles_shown_are_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is the shipped one; the pipeline, with the parts that are left out, is SD 1.5 under another name."""
    pipeline, card = blocks("adding.md", "toml")
    assert card == (ROOT / "profiles/gpus/rtx-3070.toml").read_text("utf-8")
    usual = profiles.find("sd15")
    sections = re.split(r"(?m)^(?=\[)", (ROOT / "profiles/pipelines/sd15.toml").read_text("utf-8"))
    others = (text for text in sections if text.startswith("[components.") and "[components.unet" not in text)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/some-model.toml").write_text(pipeline + "\n" + "".join(others), "utf-8")
    monkeypatch.setattr(profiles, "shipped", lambda: tmp_path)
    found = profiles.find("someone/some-model")
    assert found.name == "some-model"
    assert {part.name: part for part in found.components} == {part.name: part for part in usual.components}
    assert (found.defaults, found.dtype) == (usual.defaults, usual.dtype)


def test_python_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.stable_diffusion(tmp_path / "letters").save_pretrained(tmp_path / "tiny-sd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: dict[str, Any] = {}
    for block in python("python.md"):
        exec(compile(block, "python.md", "exec"), seen)
    said = capsys.readouterr().out
    assert "fits in 8.00 GB" in said
    assert "vae.decode" in said


@pytest.mark.parametrize("page", [page for page in sessions.pages() if sessions.BLOCK.search(page.read_text("utf-8"))])
def test_terminals_print_what_is_shown(page: Path, cache: Path, tmp_path: Path) -> None:
    folder = sessions.desk(tmp_path)
    steps = [step for block in sessions.BLOCK.findall(page.read_text("utf-8")) for step in sessions.steps(block)]
    found = {
        step.command: sessions.differs(step.shown, sessions.printed(step.command, folder, cache))
        for step in steps
        if step.runs
    }
    wrong = [f"$ {command}\n{said}" for command, said in found.items() if said]
    assert not wrong, "\n".join((*wrong, f"python tests/sessions.py {page.relative_to(ROOT)} records it anew"))


@pytest.mark.parametrize("columns", terminals.WIDTHS)
def test_terminals_are_drawn_as_they_print(columns: int, cache: Path, tmp_path: Path) -> None:
    """Pictures of terminals show what is printed at that width, figures and durations aside, and fetch nothing."""

    def bare(text: str) -> str:
        return sessions.masked(text).replace(" ", "")

    for name, command in terminals.COMMANDS.items():
        drawn = terminals.named(name, columns).read_text("utf-8")
        real = sessions.printed(command, tmp_path, cache, columns)
        assert max(map(cell_len, real.splitlines())) <= columns
        assert bare(terminals.words(drawn)) == bare(f"$ {command}\n{real}"), "python tests/terminals.py makes it anew"
        assert "url(http" not in drawn


def test_a_difference_is_seen() -> None:
    """The comparison itself: figures and widths may move, words and bytes needed may not."""
    real = "fits: needs 7.06 GB\nabout 3 min 4 s\n- one: 2 GB over\n- two: 3 GB over\n"
    assert not sessions.differs(real.replace("3 min 4 s", "59.1 s").replace("2 GB", "9 GB"), real)
    assert not sessions.differs("fits: needs 7.06 GB\n…\n- two: 3 GB over\n", real)
    assert sessions.differs(real.replace("two", "three"), real)
    assert sessions.differs(real.replace("7.06", "7.60"), real)
    assert sessions.differs("- two: 3 GB over\n…\n- one: 2 GB over\n", real)
    assert sessions.differs("fits: needs 7.06 GB\n", real)


def test_every_command_has_its_help_shown() -> None:
    text = (DOCS / "cli.md").read_text("utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(cli.COMMANDS)
    assert isinstance(cli.main, click.Group)


def test_the_reference_has_every_public_name_and_no_other() -> None:
    named = re.findall(r"^::: planner\.(?:\w+\.)?(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(planner.__all__)


def test_every_technique_is_listed() -> None:
    rows = [row.split("|")[1] for row in (DOCS / "techniques.md").read_text("utf-8").splitlines() if row[:3] == "| `"]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(technique.name for technique in DEFAULT)


def test_figures_shown_were_measured() -> None:
    """Rows of the technique page that repeat the quality benchmark say what it says."""
    measured = (ROOT / "benchmarks/results/quality_runs.md").read_text("utf-8")
    rows = [row for row in (DOCS / "techniques.md").read_text("utf-8").splitlines() if " GB | " in row and "RTX" in row]
    assert len(rows) == 4
    for row in rows:
        for figure in re.findall(r"\d+\.\d+ GB", row):
            assert figure in measured, row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_site_has_every_page_and_picture(page: Path) -> None:
    assert f": {page.name}\n" in (ROOT / "mkdocs.yml").read_text("utf-8")
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text("utf-8")):
        assert (DOCS / picture).is_file(), picture


def test_the_site_fetches_nothing() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "font: false" in text
    assert "http" not in text
