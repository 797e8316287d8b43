"""Every technique is shown on full-size pipelines and on small ones, or it is said why not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

for package in ("gguf", "bitsandbytes", "torchao"):
    pytest.importorskip(package)

HERE = Path(__file__).parent
sys.path.append(str(HERE / "virtual_gpu"))

import evidence  # noqa: E402

from planner.techniques import DEFAULT  # noqa: E402
from planner.techniques.attention import TORCHS  # noqa: E402
from planner.techniques.attention_libraries import LIBRARIES  # noqa: E402
from planner.techniques.caches import KINDS  # noqa: E402
from planner.techniques.group import ALL  # noqa: E402
from planner.techniques.packing import BITS  # noqa: E402


@pytest.fixture(scope="module")
def shown() -> list[evidence.Shown]:
    return list(evidence.shown())


def test_the_page_is_as_the_tests_are() -> None:
    assert evidence.FILE.read_text("utf-8") == evidence.page(), "python tests/virtual_gpu/evidence.py"


def test_no_technique_is_left_out() -> None:
    covered = {technique.name for technique in DEFAULT}
    assert covered == {row.technique for row in evidence.ROWS} - {"GGUF"}
    values = [("placement", value) for value in ALL] + [("quantization", value) for value in BITS]
    values += [("step_cache", f"{kind}:1") for kind in KINDS]
    values += [("attention", value) for value in (*TORCHS, *LIBRARIES, "sliced")]
    for option in values:
        assert any(row.covers(*option) for row in evidence.ROWS), option


@pytest.mark.parametrize("row", evidence.ROWS, ids=lambda row: row.name)
def test_it_is_shown_on_enough_pipelines(row: evidence.Row, shown: list[evidence.Shown]) -> None:
    for back in (False, True):
        assert row.why or len(evidence.pipelines(row, shown, back=back)) >= evidence.ENOUGH
    file, _, name = row.bits.partition("::")
    if name:
        assert re.search(rf"^def {name}\(", (HERE / "techniques" / file).read_text("utf-8"), re.MULTILINE)
    else:
        assert row.why
