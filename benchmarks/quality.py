"""Our plan against what people use today, on the same model, request, card and budget, priced by one model.

    python benchmarks/quality.py [MODEL …]

Cells already in results/quality.csv are kept; results/quality.md is written from all of them.  The others are in
`others`; whether our plans run as promised, on the virtual GPU, is shown by quality_runs.py.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from others import Others, Way

from planner import study
from planner.cards import card
from planner.choose import NothingFits
from planner.cost import Cost
from planner.device import Device
from planner.pricing import described
from planner.rehearsal import rehearse
from planner.request import Request
from planner.scenes import SLACK

RESULTS = Path(__file__).parent / "results"
CELLS = RESULTS / "quality.csv"
MODELS = (
    *("sd15", "sdxl", "pixart-sigma", "sd3-medium", "flux1-dev", "qwen-image", "cogvideox-2b", "wan2.1-t2v-1.3b"),
    *("sd35-large", "chroma", "z-image-turbo", "lumina2"),
)
BUDGETS = {
    "rtx-3060-laptop": (4, 6),
    "rtx-3070": (6, 8),
    "rtx-3060-12gb": (8, 12),
    "t4": (8, 16),
    "rtx-4080": (12, 16),
    "rtx-4090": (16, 24),
    "rtx-5090": (24, 32),
    "a100-sxm4-80gb": (40, 80),
}
"""Eight cards, each whole and shared; GB."""
WHO = ("by hand", "ComponentsManager", "ladder", "mmgp")
COLUMNS = ("model", "card", "budget", "seconds", "plan", *(f"{who}{what}" for who in WHO for what in (" seconds", "")))
EVEN = 1.02
"""Gain below which a cell counts as none."""


def cells(model: str) -> Iterator[dict[str, str]]:
    """One row for each card and budget."""
    kept = study.opened(model, Request())
    for name, budgets in BUDGETS.items():
        device = card(name)
        ways: list[Way] = []
        for budget in budgets:
            limit = min(budget * 10**9, device.total)
            ways = list(others(kept, device, limit).ways())
            yield {"model": model, "card": name, "budget": str(budget), **ours(kept, device, limit)} | dict(
                theirs(ways, device, limit - device.context)
            )
    kept.keep()


def others(kept: study.Study, device: Device, limit: int) -> Others:
    """What others would do under that budget."""
    return Others(kept.programs, kept.pricer(device), kept.request, total=limit, context=device.context)


def ours(kept: study.Study, device: Device, limit: int) -> dict[str, str]:
    """Seconds and options of our choice; empty where nothing fits."""
    try:
        winner = kept.choice(device, limit).winner
    except NothingFits:
        return {"seconds": "", "plan": ""}
    switched = tuple(option for option in winner.candidate if not option.neutral)
    return {"seconds": f"{winner.seconds:.4f}", "plan": described(switched) if switched else "all on the card"}


def theirs(ways: Iterable[Way], device: Device, capacity: int) -> Iterator[tuple[str, str]]:
    """The fastest of each that runs; of a ladder the first."""
    cost = Cost(device)
    priced = [(way, cost.phases(way.program)) for way in ways]
    for who in WHO:
        mine = [(sum(phase.seconds for phase in phases), n, way, phases) for n, (way, phases) in enumerate(priced)]
        able = [entry for entry in mine if entry[2].who == who]
        for seconds, _, way, phases in able if who == "ladder" else sorted(able, key=lambda entry: entry[:2]):
            if max(phase.peak.total for phase in phases) > capacity:
                continue
            if not rehearse(way.program, device, capacity=capacity, cost=cost).failed:
                yield from ((f"{who} seconds", f"{seconds:.4f}"), (who, way.how))
                break


def read() -> list[dict[str, str]]:
    """Cells that were priced before."""
    if not CELLS.exists():
        return []
    with CELLS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[dict[str, str]]) -> None:
    """All cells, and what they say together."""
    with CELLS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "quality.md").write_text("\n".join(page(rows)) + "\n", "utf-8")


def gain(row: dict[str, str], who: str) -> float | None:
    """How many times faster our plan is than the best of theirs; None where only one or neither runs."""
    return (
        float(row[f"{who} seconds"]) / float(row["seconds"]) if row["seconds"] and row.get(f"{who} seconds") else None
    )


def mean(gains: Iterable[float]) -> str:
    """Geometric."""
    logs = [math.log(each) for each in gains]
    return f"{math.exp(sum(logs) / len(logs)):.2f}×" if logs else "–"


def page(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """The table by card, then the cells that matter one by one."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    fitting = [row for row in rows if row["seconds"]]
    slower = [(g, who, row) for row in rows for who in WHO if (g := gain(row, who)) is not None and g < 1]
    lost = [row for row in rows if not row["seconds"] and any(row.get(f"{who} seconds") for who in WHO)]
    yield "# Plans against what people use today\n"
    yield "`python benchmarks/quality.py`; seconds as predicted, all by the same model, fit by the same allocator.  The"
    yield "others and their rules are in `benchmarks/others.py`; plans run on the virtual GPU in"
    yield "[quality_runs.md](quality_runs.md).\n"
    yield f"{len(models)} pipelines ({', '.join(models)}), {len(BUDGETS)} cards, two budgets each: {len(rows)} cells."
    yield f"In {len(fitting)} a plan fits.  Cells in which one of the others fits and ours does not: {len(lost)}."
    yield f"Cells in which one of the others is faster by more than the {SLACK:.0%} that a lighter touch may cost:"
    behind = {id(row) for _, _, row in slower}
    beyond = {id(row) for g, _, row in slower if g < 1 / (1 + SLACK)}
    yield f"{len(beyond)}.  Faster by less: {len(behind - beyond)}.\n"
    yield (
        "| card, budget | "
        + " | ".join(f"over {who}" for who in WHO)
        + " | only ours fits, of plans without one by hand |"
    )
    yield "|---|" + "---:|" * (len(WHO) + 1)
    for name, budgets in BUDGETS.items():
        for budget in budgets:
            mine = [row for row in fitting if (row["card"], row["budget"]) == (name, str(budget))]
            means = [
                f"{mean(gains)} ({len(gains)})"
                for who in WHO
                if (gains := [g for row in mine if (g := gain(row, who)) is not None]) is not None
            ]
            alone = sum(not row.get("by hand seconds") for row in mine)
            yield f"| {name}, {budget} GB | " + " | ".join(means) + f" | {alone} |"
    yield "\nGeometric mean of the speed-up, over the cells (their number) in which both run."
    yield from listed(fitting, slower)


def listed(fitting: Sequence[dict[str, str]], slower: Sequence[tuple[float, str, dict[str, str]]]) -> Iterator[str]:
    """Cells without a gain, and cells in which another is a little faster."""
    yield "\n## Cells with no gain over the best mode by hand\n"
    none = [row for row in fitting if (g := gain(row, "by hand")) is not None and g < EVEN]
    yield (
        "; ".join(f"{row['model']} on {row['card']}, {row['budget']} GB ({row['by hand']})" for row in none) or "None."
    )
    yield "\n## Cells in which another is faster\n"
    for each, who, row in slower:
        other, mine = float(row[f"{who} seconds"]), float(row["seconds"])
        where = f"{row['model']} on {row['card']}, {row['budget']} GB"
        yield f"- {where}: {who} ({row[who]}) {other:.2f} s, ours ({row['plan']}) {mine:.2f} s, {1 / each - 1:.1%} more"
    yield "" if slower else "None."


def main() -> None:
    rows = read()
    for model in sys.argv[1:] or MODELS:
        if any(row["model"] == model for row in rows):
            continue
        for row in cells(model):
            print(row, flush=True)
            rows.append(row)
        write(rows)
    write(rows)


if __name__ == "__main__":
    main()
