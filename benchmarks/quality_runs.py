"""Our plan against each of diffusers' own ways to place weights, priced by one model; and whether our plan runs.

    python benchmarks/quality_runs.py [--only WORD …] [--no-run]

The others get every technique but streaming, and the placement named; the best combination with it is taken.  Plans run
on the virtual GPU under their cap, with two denoising steps.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "virtual_gpu"))

import rig  # noqa: E402

import planner  # noqa: E402
from planner.plan import Plan  # noqa: E402
from planner.pricing import words  # noqa: E402

RESULTS = HERE / "results" / "quality_runs.md"
MODES = ("resident", "model", "group_block", "group_block_stream", "group_leaf", "group_leaf_stream", "sequential")
STEPS = 2
PROMPT = " ".join(["word"] * 64)
HEAD = """# Plans against diffusers' own placements

`python benchmarks/quality_runs.py`: seconds as predicted, allocated bytes as promised and as seen on the virtual GPU.

| model | card, budget | our plan | s | best built-in mode that fits | s | faster | promised | seen | of the capacity |
|---|---|---|---:|---|---:|---:|---:|---:|---:|
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
    def wanted(self) -> dict[str, Any]:
        return {"height": self.size[0], "width": self.size[1], "frames": self.frames, "budget": self.budget}

    def plan(self, **more: Any) -> Plan:
        return planner.plan(self.model, device=planner.card(self.card), **self.wanted, **more)


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


def row(cell: Cell, server: rig.Server | None) -> str:
    """One line of the table."""
    ours, theirs = cell.plan(), []
    for mode in MODES:
        try:
            other = cell.plan(use=(f"placement={mode}",), without=("streaming",))
        except planner.PlannerError:
            continue
        theirs.append((other.promise.seconds, mode))
    best = min(theirs, default=(0.0, "none"))
    call = {"height": cell.size[0], "width": cell.size[1], "num_inference_steps": STEPS, "prompt": PROMPT}
    call |= {"num_frames": cell.frames} if cell.frames else {}
    seen = "not run"
    if server:
        device = rig.card(cell.card)
        sent = {"model": cell.model, "plan": ours.to_json(), "call": call}
        peak = server.script(run, sent, limit=900, **device, context=ours.promise.context)
        seen = f"{peak / 1e9:.2f} GB" if peak else "**out of memory**"
    chosen = ", ".join(words(option) for option in ours.options if not option.neutral) or "all on the card"
    gain = f"{best[0] / ours.promise.seconds:.2f}×" if best[0] else "–"
    cells = (
        cell.model, f"{cell.card}, {cell.budget}", chosen,
        f"{ours.promise.seconds:.1f}", best[1], f"{best[0]:.1f}", gain,
        f"{ours.promise.allocated / 1e9:.2f} GB", seen, f"{ours.promise.allocated / ours.capacity:.0%}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of model, card or budget")
    parser.add_argument("--no-run", action="store_true", help="predict only")
    given = parser.parse_args()
    server = None if given.no_run else rig.Server()
    lines: list[str] = []
    for cell in CELLS:
        if all(word in f"{cell.model} {cell.card} {cell.budget}" for word in given.only):
            lines.append(row(cell, server))
            print(lines[-1], flush=True)
            RESULTS.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
