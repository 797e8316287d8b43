"""The commands around a plan, in one small real pipeline with weights: what they print, write and promise in JSON."""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from plans import PLAN
from rich.cells import cell_len
from techniques.tiny import stable_diffusion

from planner import calibrate, calibration, cli, pictures, report
from planner.calibration import Calibration
from planner.limits import MOST
from planner.plan import Plan
from planner.printed import PRINTED

SCHEMAS = Path(__file__).parent.parent / "docs" / "schemas"
CARD = ("--gpu", "rtx-3070", "--steps", "2")
SMALL = (*CARD, "--height", "64", "--width", "96")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    stable_diffusion(place / "letters").save_pretrained(place / "pipeline")
    return place / "pipeline"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def call(folder: Path, home: str) -> Any:
    def run(command: str, *words: str, width: int = 80) -> Result:
        env = {"COLUMNS": str(width), "XDG_CACHE_HOME": home}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner(env=env).invoke(cli.main, [command, str(folder), *words])
        assert done.exit_code in (0, 2, 3), done.output
        return done

    return run


def widest(text: str) -> int:
    return max(map(cell_len, text.splitlines()))


def test_run_makes_an_image_on_the_cpu_and_shows_the_promise(call: Any, tmp_path: Path) -> None:
    image = tmp_path / "made.png"
    done = call("run", *SMALL, "--prompt", "a cat", "--seed", "1", "--output", str(image))
    assert done.exit_code == 0, done.output
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "promised" in done.stdout
    assert f"Wrote {image}" in done.stdout.replace("\n", "")
    again = call("run", *SMALL, "--prompt", "a cat", "--seed", "1", "--batch", "2", "--output", str(image), "--json")
    told = json.loads(again.stdout)
    assert [Path(file).name for file in told["files"]] == ["made-1.png", "made-2.png"]
    assert Plan.from_json(told["plan"]).request.images == 2
    assert told["seconds"] > 0


def test_run_refuses_what_it_cannot_write_before_it_works(call: Any, tmp_path: Path) -> None:
    done = call("run", *SMALL, "--output", str(tmp_path / "nowhere" / "image.png"))
    assert (done.exit_code, done.stdout) == (2, "")


@pytest.mark.parametrize("width", [80, 120])
def test_explain_names_the_holders(call: Any, width: int) -> None:
    done = call("explain", *SMALL, width=width)
    assert done.exit_code == 0, done.output
    assert widest(done.stdout) <= width
    assert "weights" in done.stdout


def test_explain_as_json_accounts_for_every_byte(call: Any, tmp_path: Path) -> None:
    plot = tmp_path / "steps.svg"
    told = json.loads(call("explain", *SMALL, "--plot", str(plot), "--json").stdout)
    for phase in told["counts"]:
        assert sum(holding["bytes"] for holding in phase["holdings"]) == phase["peak"]
    assert told["steps"][0]["what"] == "nothing switched on"
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert call("explain", *SMALL, "--phase", "unrest").exit_code == 2


def test_the_frontier_trades_time_for_memory(call: Any, tmp_path: Path) -> None:
    plot = tmp_path / "frontier.svg"
    told = json.loads(call("frontier", *SMALL, "--down-to", "400MB", "--plot", str(plot), "--json").stdout)
    points = told["points"]
    assert points
    assert [p["budget"] for p in points] == sorted(p["budget"] for p in points)
    assert [p["seconds"] for p in points] == sorted((p["seconds"] for p in points), reverse=True)
    assert points[-1]["seconds"] <= told["bare"]["seconds"]
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert widest(call("frontier", *SMALL).stdout) <= 80
    assert call("frontier", *SMALL, "--plot", "picture.gif").exit_code == 2
    assert "'8 bananas' is not an amount of memory" in call("frontier", *SMALL, "--down-to", "8 bananas").output


def test_the_smallest_budget_fits_and_less_does_not(call: Any) -> None:
    told = json.loads(call("min", *SMALL, "--json").stdout)
    plan = Plan.from_json(told["plan"])
    assert plan.budget * 0.98 - 1 <= told["below"] < plan.budget
    assert call("plan", *SMALL, "--budget", f"{plan.budget}B", "--json").exit_code == 0
    refused = printed(call("plan", *SMALL, "--budget", f"{told['below']}B", "--json"), "error")
    assert (refused["kind"], refused["phase"]) == ("Infeasible", told["phase"])
    done = call("min", *SMALL)
    assert "The smallest budget of" in done.stdout
    assert widest(done.stdout) <= 80


def test_the_report_is_whole_and_loads_nothing(call: Any, tmp_path: Path) -> None:
    page, plot = tmp_path / "plan.html", tmp_path / "plan.svg"
    done = call("plan", *SMALL, "--report", str(page), "--plot", str(plot))
    assert done.exit_code == 0, done.output
    text = page.read_text("utf-8")
    outside = re.sub(r'xmlns="[^"]*"', "", text)
    assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?\s*(https?:)?//', outside)
    assert "<script" not in text
    for said in ("Memory over time", "Phase by phase", "To do the same by hand", "vae.decode"):
        assert said in text
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


JSON = {
    "plan": SMALL,
    "max": (*SMALL, "--of", "batch"),
    "min": SMALL,
    "compare": (*SMALL[2:], "--gpu", "rtx-3070", "--budget", "445MB", "--budget", "8GB", "--price", "1"),
    "frontier": SMALL,
    "explain": SMALL,
    "run": (*SMALL, "--output"),
    "verify": (*SMALL, "--once"),
}
"""What is asked of every command that takes a pipeline."""


def printed(done: Result, name: str) -> Any:
    """The JSON, which keeps to the published schema."""
    told = json.loads(done.stdout)
    schema = json.loads((SCHEMAS / f"{name}.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(told)
    return told


@pytest.mark.parametrize("command", JSON)
def test_json_keeps_to_the_published_schema(
    call: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST, "batch", 2)  # each step is a recording
    words = (*JSON[command], *([str(tmp_path / "made.png")] if command == "run" else []))
    done = call(command, *words, "--json")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert printed(done, command)


@pytest.mark.parametrize("command", JSON)
def test_json_of_what_cannot_be_keeps_to_it_too(call: Any, command: str) -> None:
    done = call(command, *(word for word in JSON[command] if word != "--output"), "--height", "13", "--json")
    assert done.exit_code == 2
    assert printed(done, "error")["kind"] == "TraceFailed"


def test_json_of_infeasible_carries_the_evidence(call: Any) -> None:
    told = printed(call("plan", *SMALL, "--budget", "441MB", "--json"), "error")
    assert told["kind"] == "Infeasible"
    assert told["smallest_budget"] > told["leanest"]["budget"] == 441_000_000


@pytest.mark.parametrize(("words", "name"), [(("profiles",), "profiles"), (("profiles", "--gpus"), "gpus")])
def test_json_of_lists_keeps_to_the_published_schema(words: tuple[str, ...], name: str) -> None:
    assert printed(CliRunner().invoke(cli.main, [*words, "--json"]), name)


def test_json_of_the_cards_here_keeps_to_the_published_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Calibration(device_name=PLAN.device.name, made="today", pinned_rate=12e9, context=1)
    probe = sys.modules["planner.probe"]  # the package's own `probe` is the function
    monkeypatch.setattr(probe, "probe", lambda: (PLAN.device,))
    monkeypatch.setattr(probe, "probe_one", lambda place: PLAN.device)
    monkeypatch.setattr(calibrate, "calibrate", lambda device, bench, free: made)
    monkeypatch.setattr(calibration, "folder", lambda: tmp_path)
    assert printed(CliRunner().invoke(cli.main, ["probe", "--json"]), "probe")[0]["total"] == PLAN.device.total
    told = printed(CliRunner().invoke(cli.main, ["calibrate", "--json"]), "calibrate")
    assert Path(told["file"]).is_file()
    assert told["calibration"]["pinned_rate"] == 12e9


def test_every_command_with_json_has_a_schema_and_prints_it() -> None:
    texts = {name: CliRunner().invoke(cli.main, [name, "--help"]).output for name in cli.COMMANDS}
    told = {name for name, text in texts.items() if re.search(r"^  --json", text, re.MULTILINE)}
    assert told | {"gpus", "error"} == set(PRINTED)
    done = CliRunner().invoke(cli.main, ["schema", "plan"])
    assert json.loads(done.stdout) == json.loads((SCHEMAS / "plan.json").read_text("utf-8"))
    unknown = CliRunner().invoke(cli.main, ["schema", "plans"])
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (2, 1)


def test_notebooks_show_a_plan_as_html() -> None:
    shown = PLAN._repr_html_()
    assert "sd15 at 3840×2224" in shown
    assert "<svg" in shown
    odd = replace(PLAN, model="<b>bold</b>")
    assert "<b>bold</b>" not in report.cell(odd)


def test_pictures_hold_their_words_inside() -> None:
    drawn = ElementTree.fromstring(pictures.memory(PLAN))
    texts = [each for each in drawn.iter() if each.tag.endswith("text")]
    assert texts
    for each in texts:
        start = {"start": 0.0, "middle": 0.5, "end": 1.0}[each.attrib["text-anchor"]]
        length = 6.4 * len(each.text or "") * float(each.attrib["font-size"]) / 12
        left = float(each.attrib["x"]) - start * length
        assert left >= 0, each.text
        assert left + length <= 800, each.text


def test_verify_ends_with_4_where_a_run_goes_over(
    call: Any, folder: Path, home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run is real; what a card would have counted is made up, for there is none."""
    monkeypatch.setattr("planner.lessons.file", lambda: tmp_path / "lessons.json")
    done = call("verify", *SMALL, "--once")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "Within its budget.")
    monkeypatch.setattr("planner.verify._outside", lambda plan: plan.budget + 1)
    runner = CliRunner(env={"COLUMNS": "80", "XDG_CACHE_HOME": home})
    over = runner.invoke(cli.main, ["verify", str(folder), *SMALL, "--once"])
    assert (over.exit_code, over.stdout.splitlines()[-1]) == (4, "Over its budget.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    done = CliRunner().invoke(cli.main, ["completion", shell])
    assert done.exit_code == 0
    assert "_VRAM_PLANNER_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("begun", "offered"),
    [
        ("plan sd1", "sd15"),
        ("plan sd15 --gpu rtx-407", "rtx-4070"),
        ("plan sd15 --fidelity l", "lossy"),
        ("plan sd15 --dtype b", "bf16"),
        ("plan sd15 --use vae_t", "vae_tiling"),
        ("plan sd15 --without st", "streaming"),
        ("schema fr", "frontier"),
    ],
)
def test_names_complete(begun: str, offered: str) -> None:
    words = f"vram-planner {begun}"
    env = {"_VRAM_PLANNER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert offered in CliRunner(env=env).invoke(cli.main, [], prog_name="vram-planner").output
