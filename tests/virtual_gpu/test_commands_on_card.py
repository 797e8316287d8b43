"""Commands that run a pipeline, as they are typed, on the virtual GPU: what they print beside their promise agrees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import rig
from techniques import tiny

CONTEXT = 300 * 2**20
SMALL = ["--width", "64", "--height", "64", "--steps", "8"]
"""Steps enough to be timed: of a phase under 10 ms no pace is learned."""


def typed(home: str, commands: list[list[str]]) -> list[str]:
    """Sent to the card: what each command prints, with a cache of their own."""
    import os

    from click.testing import CliRunner
    from inside import smallvalues

    from planner import cli

    os.environ["XDG_CACHE_HOME"] = home
    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    said = []
    for words in commands:
        done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        said.append(done.stdout)
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline of a few thousand weights, on disk."""
    place = tmp_path_factory.mktemp("tiny")
    tiny.stable_diffusion(place / "letters").save_pretrained(place / "tiny-sd")
    return place / "tiny-sd"


def test_run_shows_the_peak_it_promised(vgpu: rig.Server, folder: Path, tmp_path: Path) -> None:
    command = ["run", str(folder), *SMALL, "--budget", "2GB", "--output", str(tmp_path / "made.png")]
    (said,) = vgpu.script(
        typed, {"home": str(tmp_path), "commands": [command]}, **rig.card("rtx-3070"), context=CONTEXT
    )
    assert (tmp_path / "made.png").exists()
    for what in ("allocated", "reserved"):
        ((promised, seen),) = re.findall(rf"^{what} +([\d.]+ \w+) +([\d.]+ \w+)$", said, re.MULTILINE)
        assert seen == promised, said


def test_verify_holds_and_teaches_the_next_plan(vgpu: rig.Server, folder: Path, tmp_path: Path) -> None:
    same = ["--fidelity", "exact", "--without", "channels_last_denoiser"]  # or it turns to a layout it has not measured
    ask = [str(folder), *SMALL, *same, "--budget", "2GB", "--json"]
    commands = [["plan", *ask], ["verify", *ask], ["plan", *ask]]
    said = vgpu.script(typed, {"home": str(tmp_path), "commands": commands}, **rig.card("rtx-3070"), context=CONTEXT)
    before, verdict, after = map(json.loads, said)
    ratios = {row["what"]: row["ratio"] for row in verdict["rows"]}
    assert verdict["held"]
    assert ratios["allocated"] == pytest.approx(1, abs=0.005)
    assert ratios["reserved"] == pytest.approx(1, abs=0.05)
    slower = {phase["name"]: phase["slower"] for phase in after["promise"]["phases"]}
    assert slower["unet"] == pytest.approx(ratios["unet, seconds"], rel=0.01)
    assert after["promise"]["seconds"] != before["promise"]["seconds"]
    assert after["promise"]["allocated"] == pytest.approx(before["promise"]["allocated"], rel=0.01)
