"""The command line as people and scripts meet it: exit codes, one sentence of error, 80 columns, JSON."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from plans import PLAN
from rich.cells import cell_len
from rich.console import Console

from planner import auto, cli, profiles, tables
from planner.cli import options
from planner.errors import TraceFailed
from planner.plan import HOST, Infeasible, Plan
from planner.request import Budget, Fidelity, Request

ON_CARD = ("--gpu", "rtx-3070")


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", "CUDA_VISIBLE_DEVICES": None}).invoke(
        cli.main, words, prog_name="vram-planner"
    )


def process(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A real one, without a terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "CUDA_VISIBLE_DEVICES")}
    return subprocess.run(
        [sys.executable, "-m", "planner", *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=kept | more,
        check=False,
    )


def widest(text: str) -> int:
    return max(map(cell_len, text.splitlines()))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `auto.plan` was asked, with the answer given at once."""
    asked: list[Any] = []

    def plan(model: object, **given: Any) -> Plan:
        asked.append((model, given))
        return replace(PLAN, request=given["request"])

    monkeypatch.setattr(auto, "plan", plan)
    return asked


def refuse(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def plan(model: object, **given: Any) -> Plan:
        raise error

    monkeypatch.setattr(auto, "plan", plan)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sd51", *ON_CARD), "No pipeline 'sd51': closest are sd21, sd15"),
        (("/no/such/folder", *ON_CARD), "No pipeline '/no/such/folder'"),
        (("sd15", *ON_CARD, "--budget", "8 bananas"), "'8 bananas' is not a budget"),
        (("sd15", *ON_CARD, "--budget", "16GB"), "7.41 GB more than the 8.59 GB"),
        (("sd15", *ON_CARD, "--height", "-512"), "height is -512"),
        (("sd15", *ON_CARD, "--steps", "0"), "steps is 0"),
        (("sd15", *ON_CARD, "--guidance", "nan"), "guidance is nan"),
        (("sd15", *ON_CARD, "--dtype", "int3"), "'int3' is not a dtype"),
        (("sd15", *ON_CARD, "--fidelity", "perfect"), "'perfect' is not a fidelity"),
        (("sd15", *ON_CARD, "--host-ram", "much"), "'much' is not an amount of memory"),
        (("sd15", *ON_CARD, "--arg", "eta"), "'eta' is not KEY=VALUE"),
        (("sd15", *ON_CARD, "--arg", "sigmas=[1,"), "'[1,' is not JSON"),
        (("sd15", *ON_CARD, "--arg", "eta=NaN"), "plan with finite numbers"),
        (("sd15", *ON_CARD, "--arg", "num_inference_steps=20"), "write --steps 20"),
        (("sd15", *ON_CARD, "--arg", "eta=0", "--arg", "eta=1"), "given twice"),
        (("sd15", *ON_CARD, "--arg", "mask_image=1"), "write --mask"),
        (("sd15", *ON_CARD, "--image", "bananas"), "image 'bananas' is not the size of a picture; write 1024x768"),
        (("sd15", *ON_CARD, "--image", "0x5"), "a side has 1 to 65536 pixels"),
        (("sd15", *ON_CARD, "--strength", "2"), "strength is 2.0"),
        (("sd21", *ON_CARD, "--control"), "sd21 has no ControlNet"),
        (("sd15", *ON_CARD, "--with", "sdxl-controlnet"), "made for another denoiser"),
        (("sd15", *ON_CARD, "--with", "upscaler"), "no optional component 'upscaler'"),
        (("sd15", "--gpu", "rtx-9999"), "No card profile 'rtx-9999'"),
        (("sd15", "--vram", "0"), "holds nothing"),
        (("sd15", "--vram", "8"), "write 8GB if gigabytes were meant"),
        (("flux1-dev", *ON_CARD, "--with", "transformer=none.gguf"), "There is no file none.gguf"),
    ],
)
def test_refusals_are_one_sentence_and_exit_2(words: tuple[str, ...], said: str) -> None:
    result = run("plan", *words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("breaks", ["truncated", "remote code", "empty"])
def test_broken_folders_are_refused(breaks: str, tmp_path: Path) -> None:
    profiles.write_folder("sd15", tmp_path)
    index = tmp_path / "model_index.json"
    if breaks == "truncated":
        index.write_text(index.read_text()[:100])
    elif breaks == "remote code":
        (tmp_path / "pipeline.py").write_text("raise SystemExit('this ran')")
    else:
        index.unlink()
    done = process("plan", str(tmp_path), *ON_CARD)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert "this ran" not in done.stderr
    assert done.stdout == ""


def test_wrong_options_are_explained_by_click_or_as_json() -> None:
    plain, as_json = run("plan", "sd15", "--height", "tall"), run("plan", "sd15", "--height", "tall", "--json")
    assert (plain.exit_code, as_json.exit_code) == (2, 2)
    assert "'tall' is not a valid integer" in plain.stderr
    assert "'tall' is not a valid integer" in json.loads(as_json.stdout)["error"]
    both = run("plan", "sd15", "--gpu", "rtx-3070", "--vram", "8GB")
    assert both.exit_code == 2
    assert "give one of them" in both.stderr


def test_errors_as_json() -> None:
    result = run("plan", "sd15", *ON_CARD, "--budget", "8 bananas", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["kind"] == "BadBudget"
    assert result.stderr == ""


def test_no_driver_is_said_with_what_to_do() -> None:
    done = process("plan", "sd15", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "--gpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_request_arrives_whole(answered: list[Any]) -> None:
    words = "--height 2224 --width 3840 --batch 2 --prompts 3 --frames 5 --steps 20 --guidance 7.5 --prompt-tokens 9"
    limits = "--budget 75% --dtype bf16 --fidelity lossy --host-ram 16GB --disk 20GB"
    extra = ("--arg", "sigmas=[1, 0.5]", "--arg", 'negative_prompt="blue"')
    assert run("plan", "sd15", *ON_CARD, *words.split(), *limits.split(), *extra).exit_code == 0
    [(model, given)] = answered
    assert model == "sd15"
    assert given["device"].name == "NVIDIA GeForce RTX 3070"
    assert given["request"] == Request(
        height=2224, width=3840, images=2, prompts=3, frames=5, steps=20, guidance=7.5, prompt_tokens=9,
        budget=Budget.parse("75%"), dtype="bfloat16", fidelity=Fidelity.LOSSY, host_ram=16_000_000_000,
        disk=20_000_000_000, extra=(("sigmas", (1, 0.5)), ("negative_prompt", "blue")),
    )  # fmt: skip


def test_pictures_are_sizes_or_as_large_as_the_result(answered: list[Any]) -> None:
    words = ("--image", "640x480", "--mask", "--control", "auto*2", "--strength", "0.5")
    assert run("plan", "sd15", *ON_CARD, *words).exit_code == 0
    wanted = {"image": "640x480", "mask": True, "control": "auto*2", "strength": 0.5}
    assert answered[0][1]["request"] == Request.from_json(wanted)


def test_a_card_of_a_size(answered: list[Any]) -> None:
    assert run("plan", "sd15", "--vram", "8GiB").exit_code == 0
    assert answered[0][1]["device"].total == 2**33


def test_an_optional_component_is_loaded(answered: list[Any]) -> None:
    assert run("plan", "sd15", *ON_CARD, "--with", "safety_checker").exit_code == 0
    assert answered[0][1]["components"] == ("safety_checker",)


def test_the_card_of_this_machine_is_left_to_the_planner(answered: list[Any]) -> None:
    assert run("plan", "sd15").exit_code == 0
    assert answered[0][1]["device"] is None


def test_the_plan_is_printed_at_80_columns_without_colour(answered: list[Any]) -> None:
    result = run("plan", "sd15", *ON_CARD, "--height", "2224", "--width", "3840")
    assert widest(result.stdout) <= 80
    assert "\x1b" not in result.stdout
    assert result.stdout.startswith("sd15 at 3840×2224 on NVIDIA GeForce RTX 3070 fits in 8.00 GB")


def test_json_reads_back_as_the_plan(answered: list[Any]) -> None:
    result = run("plan", "sd15", *ON_CARD, "--budget", "8GB", "--json")
    assert Plan.from_json(result.stdout) == replace(PLAN, request=answered[0][1]["request"])


def test_infeasible_exits_3_and_says_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = replace(PLAN, budget=4_000_000_000)
    enough = {"smallest_budget": 5_210_132_901, "largest_size": "1920×1112"}
    refuse(monkeypatch, Infeasible(leanest=lean, phase="vae.decode", over=1_210_132_901, **enough))  # type: ignore[arg-type]
    result = run("plan", "sd15", *ON_CARD)
    assert result.exit_code == 3
    for word in ("1.21 GB over in vae.decode", "5.21 GB", "1920×1112"):
        assert word in result.stderr
    assert "vae.decode" in result.stdout
    assert widest(result.stdout) <= 80
    as_json = run("plan", "sd15", *ON_CARD, "--json")
    assert as_json.exit_code == 3
    told = json.loads(as_json.stdout)
    assert told["kind"] == "Infeasible"
    assert (told["phase"], told["over"], told["smallest_budget"]) == ("vae.decode", 1_210_132_901, 5_210_132_901)
    assert Plan.from_json(told["leanest"]) == lean


def test_host_memory_that_is_short_is_not_answered_with_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = replace(PLAN, promise=replace(PLAN.promise, host=2_130_000_000))
    refuse(monkeypatch, Infeasible(leanest=lean, phase=HOST, over=1_130_000_000, smallest_budget=PLAN.budget))
    result = run("plan", "sd15", *ON_CARD, "--host-ram", "1GB")
    assert result.exit_code == 3
    assert "1.13 GB of host memory are missing, 2.13 GB would do; allow more or free some." in result.stderr


def test_a_pipeline_that_refuses_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, TraceFailed("`height` and `width` have to be divisible by 8\nbut are 513 and 512."))
    result = run("plan", "sd15", *ON_CARD)
    assert result.exit_code == 2
    assert result.stderr == "Error: `height` and `width` have to be divisible by 8 but are 513 and 512.\n"


def test_a_fault_of_ours_exits_1_and_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, ZeroDivisionError("division by zero"))
    result = run("plan", "sd15", *ON_CARD)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_interruption_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, KeyboardInterrupt())
    result = run("plan", "sd15", *ON_CARD)
    assert result.exit_code == 130
    assert "Traceback" not in result.output


@pytest.mark.parametrize("words", [("profiles",), ("profiles", "--gpus")])
def test_lists_fit_80_columns_and_parse(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 0
    assert widest(result.stdout) <= 80
    listed = json.loads(run(*words, "--json").stdout)
    key = "slug" if "--gpus" in words else "name"
    shown = {line.split()[0] for line in result.stdout.splitlines()}
    assert {each[key] for each in listed} <= shown


def test_cards_of_this_machine_fit_80_columns() -> None:
    seen = replace(PLAN.device, uuid="GPU-8f5dc3f2-0a58-4fbe-8b4f-2d0d9e5b7c11", driver="580.65.06", pcie=(4, 16))
    page = Console(file=io.StringIO(), width=80, color_system=None)
    page.print(tables.devices_table([seen, replace(seen, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", mig=True)]))
    text = page.file.getvalue()  # type: ignore[attr-defined]
    assert widest(text) <= 80
    for word in ("0: NVIDIA GeForce RTX 3070", "1: NVIDIA H100", seen.uuid, "8.59 GB", "8.6", "MIG slice", seen.driver):
        assert word in text


def test_narrow_lists_still_name_the_pipelines() -> None:
    result = CliRunner(env={"COLUMNS": "50"}).invoke(cli.main, ["profiles"])
    assert set(profiles.names()) <= set(result.stdout.split())


def test_weights_are_those_of_the_loaded_components() -> None:
    [sd15] = [each for each in json.loads(run("profiles", "--json").stdout) if each["name"] == "sd15"]
    assert sd15["weights"] == 2 * (123_060_480 + 859_520_964 + 83_653_863)
    assert sd15["optional"] == ["safety_checker", "feature_extractor"]


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_is_whole_in_80_columns(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert widest(result.output) <= 80
    assert "Exit codes:" in result.output
    assert "..." not in result.output.replace("[ARGS]...", "").replace("COMMAND", ""), "a help text is cut"


def test_help_tells_the_exit_codes() -> None:
    told = run("--help").output.partition("Exit codes:")[2]
    codes = {int(line.split()[0]) for line in told.splitlines() if line.strip()}
    assert codes == {0, 1, cli.REFUSED, cli.INFEASIBLE, cli.OVER, cli.INTERRUPTED}


@pytest.mark.parametrize("command", ["plan", "run", "max", "compare", "frontier", "explain", "verify"])
def test_help_shows_many_options_in_sections(command: str) -> None:
    """Each option once, below what it concerns, and all of them in line."""
    said = run(command, "--help").output
    titles = [line.strip(" :") for line in said.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == [*options.SECTIONS, options.OTHERS]
    context = click.Context(cli.main)
    asked = [name for each in cli.main.get_command(context, command).params for name in each.opts if name[0] == "-"]
    assert not re.search(r"^  MODEL *$", said, re.MULTILINE), "described above"
    for name in asked:
        assert len(re.findall(rf"^  {name}[ /]", said, re.MULTILINE)) == 1, name


def test_version() -> None:
    from planner import __version__

    assert __version__ in run("--version").output


def test_probe_in_a_real_process() -> None:
    done = process("probe", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode == 0 and isinstance(told, list)) or (
        done.returncode == 2 and told["kind"] == "UnknownDevice"
    )


def test_a_plan_from_nothing_and_again_from_the_cache(tmp_path: Path) -> None:
    folder, words = tmp_path / "pipeline", ("--gpu", "rtx-3070", "--height", "64", "--width", "64", "--steps", "1")
    profiles.write_folder("sd15", folder)
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    cold = process("plan", str(folder), *words, "--json", **home)
    assert (cold.returncode, cold.stderr) == (0, "")
    code = "import sys, planner.cli as c; c.main(standalone_mode=False); print(*{'torch'} & {*sys.modules})"
    warm = subprocess.run(
        [sys.executable, "-c", code, "plan", str(folder), *words, "--json"],
        capture_output=True, encoding="utf-8", env={**os.environ, **home}, check=True,
    )  # fmt: skip
    assert json.loads(warm.stdout) == json.loads(cold.stdout), "and torch in the last line would break the JSON"
    assert Plan.from_json(cold.stdout).request.height == 64


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_without_unicode_get_text_all_the_same(encoding: str) -> None:
    done = process("plan", "sd15", *ON_CARD, "--budget", "8 bananas", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_asking_for_help_loads_nothing_heavy() -> None:
    code = "import sys, planner.cli; print({'torch', 'diffusers', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
