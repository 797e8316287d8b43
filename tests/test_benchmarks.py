"""Benchmarks are programs of their own: here only that they import, and what of them is pure."""

from __future__ import annotations

import csv
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner import cards, profiles
from planner.scenes import SLACK
from planner.techniques import Option

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("name", ["accuracy", "founding", "published", "time_fit"])
def test_imports(benchmark: Any, name: str) -> None:
    assert callable(benchmark(name).main if name != "published" else benchmark(name).report)


def row(comparing: Any, **changes: Any) -> Any:
    plain = comparing.Compared(
        cell="1/0.0", model="sd15", dtype="", size="512×512", images=1, card="rtx-3070", cap=8 * 10**9,
        options="vae_tiling=384 + placement=resident", phase="whole", said="fits", outcome="ran", roomy=0,
        predicted_allocated=1010, allocated=1000, predicted_reserved=900, reserved=1000,
    )  # fmt: skip
    return replace(plain, **changes)


def test_the_summary_counts_verdicts_and_explains_what_is_large(benchmark: Any) -> None:
    comparing, summary = benchmark("comparing"), benchmark("summary")
    rows = [
        row(comparing),
        row(comparing, cell="1/0.1", said="does not fit", predicted_allocated=1100),
        row(comparing, cell="1/1.0", outcome="failed: no kernel", allocated=0, predicted_allocated=0),
    ]
    page = summary.page(rows, "run", {"torch": "2"}, {("1/0.1", "whole"): "a convolution"})
    assert "| allocated, all | 2 | 5.50% | 10.00% | +1.00% | +10.00% |" in page
    assert "| reserved, all | 2 | 10.00% | 10.00% | -10.00% | -10.00% |" in page
    assert "| said: fits | 1 | 0 |" in page
    assert "| said: does not fit | 1 | 0 |" in page
    assert "| whole | +10.00% | -10.00% | a convolution |" in page
    assert "- 1/0.1 sd15 512×512 × 1" in page.partition("## Wrong verdicts")[2]
    assert "failed: no kernel" in page.partition("## Left out")[2]


def test_a_second_part_is_counted_by_itself_too(benchmark: Any) -> None:
    comparing, summary = benchmark("comparing"), benchmark("summary")
    rows = [row(comparing, cell="1/0.0", predicted_allocated=1500), row(comparing, cell="1/7.0")]
    page = summary.page(rows, "run", {}, {}, summary.Notes(said="How it was drawn.", second_from=7))
    assert "How it was drawn." in page
    assert "| allocated, all | 2 | 25.50% | 50.00% | +1.00% | +50.00% |" in page
    assert "| allocated, settings below 7 | 1 | 50.00% | 50.00% | +50.00% | +50.00% |" in page
    assert "| allocated, settings from 7 | 1 | 1.00% | 1.00% | +1.00% | +1.00% |" in page


def test_the_page_of_results_is_made_of_its_rows(benchmark: Any) -> None:
    """All but its first line, which names the versions it ran on."""
    summary, results = benchmark("summary"), BENCHMARKS / "results"
    rows = benchmark("comparing").read(results / "accuracy.csv")
    seed = int(rows[0].cell.partition("/")[0])
    notes = summary.read_notes(results / "accuracy_notes.toml", seed)
    made = summary.page(rows, "", {}, summary.read_causes(results / "accuracy_causes.csv"), notes).splitlines()
    kept = (results / "accuracy.md").read_text("utf-8").splitlines()
    assert (made[:2], made[3:]) == (kept[:2], kept[3:])


def test_nothing_is_regretted(benchmark: Any) -> None:
    """The page is made of its rows; every plan is what brute force finds by the same rule."""
    regret, results = benchmark("regret"), BENCHMARKS / "results"
    rows = regret.read()
    assert regret.page(rows) == (results / "regret.md").read_text("utf-8")
    assert len({row["model"] for row in rows}) >= 5
    assert {(row["model"], int(row["budget"])) for row in rows} == {
        (name.partition(",")[0], budget) for name, (_, budgets) in regret.CASES.items() for budget in budgets
    }
    for row in rows:
        assert regret.regret(row) == pytest.approx(0, abs=1e-6), row
        assert regret.beyond(row) <= SLACK, row
        assert int(row["rehearsed"]) <= int(row["by_sums"]) <= int(row["combinations"])


def test_brute_force_goes_through_every_combination(benchmark: Any) -> None:
    regret = benchmark("regret")
    one = [Option(technique="streaming", component="unet", value=n) for n in (1, 2)]
    other = [Option(technique="streaming", component="vae", value=1)]
    assert len(set(regret.by_component([*one, *other]))) == 6
    row = {"seconds": "10.2", "best_seconds": "10.0", "bound": "9.0", "fastest": "10.0"}
    assert regret.regret(row) == pytest.approx(0.02)
    assert (regret.beyond(row), regret.beyond(row | {"bound": "11.0"})) == (0, pytest.approx(0.1, abs=1e-5))


def test_options_are_read_back_from_words(benchmark: Any) -> None:
    words = "vae_tiling=384 + channels_last_vae=vae + vae_slicing + placement=model"
    options = benchmark("measuring").options_of(words)
    assert (
        benchmark("cells")
        .Cell(name="", setting=benchmark("cells").Setting(model="sd15"), card="rtx-3070", cap=1, options=options)
        .words
        == words
    )
    assert options[0].value == 384


def test_options_for_one_component_name_it(benchmark: Any) -> None:
    (option, _) = benchmark("measuring").options_of("streaming=transformer:21/66-until-vae + placement=resident")
    assert (option.component, option.value) == ("transformer", "21/66-until-vae")


def test_a_failure_is_told_by_what_was_raised(benchmark: Any) -> None:
    raised = benchmark("measuring").RAISED
    lines = (
        "Traceback (most recent call last):",
        "planner.errors.BadRequest: no share",
        "KeyError: 'x'",
        "WARNING[A]: b",
    )
    assert [bool(raised.match(line)) for line in lines] == [False, True, True, False]


def test_the_plot_has_a_point_for_each_cell(benchmark: Any) -> None:
    drawn = benchmark("scatter").plot([(1.0, 1.1, "model", "a & b"), (20.0, 19.0, "resident", "c")], "title")
    assert drawn.count("<circle") == 4  # two points, two groups
    assert "a &amp; b" in drawn


def test_a_cell_depends_on_seed_and_number_only(benchmark: Any) -> None:
    cells = benchmark("cells")
    assert cells.wished(1, 5) == cells.wished(1, 5)
    assert len({cells.wished(1, n).setting for n in range(30)}) > 25


def test_every_published_row_is_compared_or_says_why_not(benchmark: Any) -> None:
    with benchmark("published").FACTS.open(newline="") as lines:
        facts = list(csv.DictReader(lines))
    assert all(fact["source"] for fact in facts)
    for fact in facts:
        compared = [fact[name] for name in ("profile", "card", "options")]
        assert all(compared) == any(compared)
        assert all(compared) or fact["left_out"]
        assert all(compared) == (not fact["left_out"] or fact["left_out"].startswith("set apart after comparison"))


def test_published_rows_set_apart_stand_apart_with_their_reason(benchmark: Any) -> None:
    published = benchmark("published")
    row = published.Published(
        row="1", profile="sd15", size="512×512", images=1, dtype="float16", technique="none", card="rtx-3090",
        predicted=1010, published=1000, source="someone",
    )  # fmt: skip
    missed = replace(row, row="2", predicted=1200, left_out="set apart after comparison: another library")
    page = published.page([row, missed])
    assert "| published, allocated | 1 | 1.00% | 1.00% | +1.00% | +1.00% |" in page
    last = page.strip().splitlines()[-1]
    assert last.startswith("| 2 |")
    assert last.endswith("| +20.00% | set apart after comparison: another library |")


def test_published_timings_name_what_is_shipped(benchmark: Any) -> None:
    """And the page counts every row that is left out by its reason."""
    time_fit = benchmark("time_fit")
    rows = time_fit.read()
    used = [row for row in rows if not row.left_out]
    assert {row.card for row in used} <= set(cards.cards())
    assert {row.model for row in used} <= set(profiles.names())
    assert {word.partition("=")[0] for row in used for word in row.use.split()} <= set(time_fit.BY_NAME)
    assert all(row.published > 0 for row in used)
    page = (BENCHMARKS / "results/time.md").read_text("utf-8")
    assert f"| fitted, all | {sum(row.placement == 'resident' for row in used)} |" in page
    for why, number in Counter(row.left_out for row in rows if row.left_out).items():
        assert f"| {why} | {number} |" in page


def test_predictions_that_are_equal_put_nothing_in_order(benchmark: Any) -> None:
    time_fit = benchmark("time_fit")
    quick = next(row for row in time_fit.read() if not row.left_out and row.measures == "call")
    slow, alike = replace(quick, use="fused_qkv", seconds="100"), replace(quick, use="vae_slicing", seconds="101")
    quick = replace(quick, seconds="50")
    rows = [quick, slow, alike]
    assert time_fit.orderings(rows, {quick: 1.0, slow: 2.0, alike: 2.0})[:2] == (2, 2), "1 % apart is no pair"
    assert time_fit.orderings(rows, {quick: 2.0, slow: 2.0, alike: 1.0})[:2] == (0, 2)


def test_the_page_answers_a_change_of_card_or_budget_within_a_second() -> None:
    """As it was measured last, on full-size calls."""
    rows = [row for row in (BENCHMARKS / "results/page_time.md").read_text("utf-8").splitlines() if row.count("|") == 5]
    changes = [row for row in rows if " card:" in row or " budget:" in row]
    assert len(changes) == 9
    for row in changes:
        assert float(row.split("|")[3].split()[0]) <= 1.0, row
