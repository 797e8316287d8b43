"""Whether our plans run as promised on the virtual GPU, beside the fastest of diffusers' modes by hand.

    python benchmarks/quality_runs.py [--only WORD …] [--no-run]

Plans run under their cap, with two denoising steps.  What was seen before stays where the promise is the same and
nothing is run again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "virtual_gpu"))

import quality  # noqa: E402
import rig  # noqa: E402

from planner import study  # noqa: E402
from planner.cards import card  # noqa: E402
from planner.pricing import words  # noqa: E402
from planner.request import Request  # noqa: E402
from planner.surveys import ROOMY  # noqa: E402
from planner.units import format_bytes, format_seconds  # noqa: E402

RESULTS = HERE / "results" / "quality_runs.md"
CELLS_SEEN = RESULTS.with_suffix(".csv")
COLUMNS = ("model", "cell", "plan", "seconds", "by hand", "by hand seconds", "roomy", "promised", "seen", "share")
STEPS = 2
PROMPT = " ".join(["word"] * 64)
HEAD = """# Plans on the virtual GPU

`python benchmarks/quality_runs.py`: seconds as predicted, beside the fastest of diffusers' modes by hand, with and
without tiling, that fits; allocated bytes as promised, and as seen under the cap.

Where a cap leaves no room for cuDNN's roomiest engine, the promise still counts with it and the run may show less:
FLUX.1-dev decodes in 22.6 GB under 24 GB, after 18 workspaces were refused, and without a cap in the promised 23.0.

Where a plan leaves more than 15 % of the capacity, more would hardly help: "any memory" is what the fastest plan would
take on that card if its memory had no end.  The share is that of the capacity.

| model | card, budget | our plan | takes | any memory | best by hand | takes | faster | promised | seen | share |
|---|---|---|---:|---:|---|---:|---:|---:|---:|---:|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A model on a card under a budget."""

    model: str
    card: str
    budget: str
    size: tuple[int, int] = (1024, 1024)
    frames: int | None = None

    @property
    def request(self) -> Request:
        """The call, with the budget."""
        wanted = {"height": self.size[0], "width": self.size[1], "frames": self.frames, "budget": self.budget}
        return Request.from_json(wanted)


CELLS = (
    Cell(model="flux1-dev", card="rtx-4090", budget="24GB"),
    Cell(model="flux1-dev", card="rtx-4080", budget="16GB"),
    Cell(model="flux1-dev", card="rtx-3060-12gb", budget="12GB"),
    Cell(model="flux1-dev", card="rtx-3070", budget="8GB"),
    Cell(model="sdxl", card="rtx-3070", budget="8GB"),
    Cell(model="sdxl", card="rtx-3070", budget="6GB"),
    Cell(model="sdxl", card="rtx-3070", budget="4GB"),
    Cell(model="qwen-image", card="rtx-4090", budget="24GB"),
    Cell(model="qwen-image", card="rtx-4080", budget="16GB"),
    Cell(model="hunyuanvideo", card="rtx-4080", budget="16GB", size=(720, 1280), frames=129),
    Cell(model="wan2.1-t2v-14b", card="rtx-4090", budget="24GB", size=(720, 1280), frames=81),
    Cell(model="wan2.1-t2v-14b", card="rtx-4080", budget="16GB", size=(720, 1280), frames=81),
)


def run(model: str, plan: dict[str, Any], call: dict[str, Any]) -> int:
    """Sent to the virtual GPU: the allocated peak of a call under a plan, 0 where memory runs out."""
    import torch
    from inside import arguments, pipelines, smallvalues

    from planner import Plan

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    pipe = pipelines.shipped(model)
    Plan.from_json(plan).apply(pipe)
    try:
        with torch.no_grad():
            pipe(**arguments.of(pipe, call))
    except torch.OutOfMemoryError:
        return 0
    return int(torch.cuda.max_memory_allocated())


def row(cell: Cell, server: rig.Server | None, before: dict[str, str]) -> dict[str, str]:
    """One line of the table; `before` is what it was."""
    kept, device = study.opened(cell.model, cell.request), card(cell.card)
    ours = kept.plan(device)
    ways = (way for way in quality.others(kept, device, ours.budget).ways() if way.who == "by hand")
    best = dict(quality.theirs(ways, device, ours.capacity))
    roomy = kept.choice(device, ROOMY).winner.seconds
    kept.keep()
    promised = f"{ours.promise.allocated / 1e9:.2f} GB"
    seen = before.get("seen", "") if before.get("promised") == promised else "not run"
    if server:
        sent = {"model": cell.model, "plan": ours.to_json(), "call": call(cell)}
        peak = server.script(run, sent, limit=1800, **rig.card(cell.card), context=ours.promise.context)
        seen = f"{peak / 1e9:.2f} GB" if peak else "**out of memory**"
    return {
        "model": cell.model, "cell": f"{cell.card}, {cell.budget}", "seconds": f"{ours.promise.seconds:.1f}",
        "plan": ", ".join(words(option) for option in ours.options if not option.neutral) or "all on the card",
        "by hand": best.get("by hand", "none"), "by hand seconds": f"{float(best.get('by hand seconds', 0)):.1f}",
        "roomy": f"{roomy:.1f}", "promised": promised, "seen": seen,
        "share": f"{ours.promise.allocated / ours.capacity:.0%}",
    }  # fmt: skip


def call(cell: Cell) -> dict[str, Any]:
    """Arguments of the call that is run."""
    given = {"height": cell.size[0], "width": cell.size[1], "num_inference_steps": STEPS, "prompt": PROMPT}
    return given | ({"num_frames": cell.frames} if cell.frames else {})


def line(row: dict[str, str]) -> str:
    """As the page shows it."""
    theirs, mine = float(row["by hand seconds"]), float(row["seconds"])
    faster, slower = (f"{theirs / mine:.2f}×", format_seconds(theirs)) if theirs else ("–", "–")
    cells = (
        row["model"], row["cell"], row["plan"], format_seconds(mine), format_seconds(float(row["roomy"])),
        row["by hand"], slower, faster, _short(row["promised"]), _short(row["seen"]), row["share"],
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _short(figure: str) -> str:
    """Bytes in three digits; words as they are."""
    return format_bytes(round(float(figure[:-3]) * 1e9)) if figure.endswith(" GB") else figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of model, card or budget")
    parser.add_argument("--no-run", action="store_true", help="predict only")
    given = parser.parse_args()
    server = None if given.no_run else rig.Server()
    rows: dict[tuple[str, str], dict[str, str]] = {}
    if CELLS_SEEN.exists():
        with CELLS_SEEN.open(encoding="utf-8", newline="") as file:
            rows = {(row["model"], row["cell"]): row for row in csv.DictReader(file)}
    for cell in CELLS:
        key = cell.model, f"{cell.card}, {cell.budget}"
        if all(word in " ".join(key) for word in given.only):
            rows[key] = row(cell, server, rows.get(key, {}))
            print(line(rows[key]), flush=True)
        with CELLS_SEEN.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows.values())
        RESULTS.write_text(HEAD + "".join(f"{line(each)}\n" for each in rows.values()), "utf-8")


if __name__ == "__main__":
    main()
