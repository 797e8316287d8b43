"""Golden plans: a story a file in cases/.  `python tests/test_golden.py` writes them anew after a meant change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import planner
from planner import cudnn
from planner.study import cache_folder

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


def planned(case: dict[str, Any], cache: Path) -> planner.Plan:
    return planner.plan(case["model"], device=planner.card(case["gpu"]), cache=cache, **case["request"])


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_plans_are_as_they_were(file: Path, cache: Path) -> None:
    case = json.loads(file.read_text("utf-8"))
    plan = planned(case, cache)
    assert [[option.technique, option.value] for option in plan.options] == case["options"]
    assert plan.promise.allocated == pytest.approx(case["allocated"], rel=1e-3)
    assert plan.promise.seconds == pytest.approx(case["seconds"], rel=0.02)
    assert plan.baseline_fits == case["baseline_fits"]
    assert plan.promise.needed <= plan.budget
    assert plan.bound <= plan.promise.seconds


def renew() -> None:
    for file in CASES:
        case = json.loads(file.read_text("utf-8"))
        plan = planned(case, cache_folder())
        found = {
            "options": [[option.technique, option.value] for option in plan.options],
            "allocated": plan.promise.allocated,
            "seconds": round(plan.promise.seconds, 3),
            "baseline_fits": plan.baseline_fits,
        }
        file.write_text(json.dumps(case | found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    with patch.object(cudnn, "library", lambda: None):  # by the rules, as the tests take them
        renew()
