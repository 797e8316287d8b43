"""What is chosen against brute force: every combination of some techniques priced, and rehearsed in order of time.

    python benchmarks/regret.py [MODEL …]

Cells already in results/regret.csv are kept; results/regret.md is written from all of them.  Techniques are few enough
here that all their combinations can be gone through; whatever else is on offer is left out for both.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from planner import study
from planner.cards import card
from planner.choose import choose
from planner.pricing import Candidate, Priced, Pricer, described, intervention
from planner.request import Request
from planner.scenes import SLACK, Limits
from planner.techniques import DEFAULT, Option
from planner.techniques.streaming import Streaming

RESULTS = Path(__file__).parent / "results"
CELLS = RESULTS / "regret.csv"
DEVICE = card("rtx-3090")
SHARES = 4
"""Shares of a component that may be streamed, where `streaming` is among the techniques."""
CASES = {
    "sdxl": (("channels_last_denoiser", "channels_last_vae", "vae_slicing", "vae_tiling", "placement"), (4, 7)),
    "sdxl, streamed": (("vae_tiling", "streaming", "placement"), (4, 7)),
    "flux1-dev": (("channels_last_vae", "fused_qkv", "vae_slicing", "vae_tiling", "placement"), (3, 12)),
    "wan2.1-t2v-1.3b": (("vae_tiling", "placement"), (6, 12)),
    "svd": (("decode_chunks", "placement"), (6, 12)),
    "sd15": (("channels_last_denoiser", "channels_last_vae", "vae_tiling", "placement"), (1, 2)),
}
"""By model, techniques of every scope it has, and two budgets in GB."""
COLUMNS = (
    *("model", "techniques", "budget", "combinations", "by_sums", "rehearsed", "fastest", "best_seconds", "best"),
    *("seconds", "plan", "bound", "enumerating", "choosing"),
)


def cells(name: str) -> Iterator[dict[str, str]]:
    """One row for each budget."""
    techniques, budgets = CASES[name]
    model = name.partition(",")[0]
    able = [Streaming(steps=SHARES) if t.name == "streaming" else t for t in DEFAULT if t.name in techniques]
    opened = replace(study.opened(model, Request()), techniques=able)
    for budget in budgets:
        began = time.process_time()
        pricer = opened.pricer(DEVICE)
        priced = [pricer.price(candidate) for candidate in every(pricer)]
        opened.keep()
        capacity = budget * 10**9 - DEVICE.context
        found = Brute(pricer, priced, capacity).row()
        enumerated = time.process_time()
        own = replace(opened, _pricers={}, _others={}, _recalled={}).pricer(DEVICE)
        choice = choose(own, Limits(capacity=capacity, host=None))
        yield {
            "model": model, "techniques": " ".join(t.name for t in able), "budget": str(budget), **found,
            "seconds": f"{choice.winner.seconds:.6f}", "plan": changes(choice.winner.candidate),
            "bound": f"{choice.solution.bound:.6f}", "enumerating": f"{enumerated - began:.1f}",
            "choosing": f"{time.process_time() - enumerated:.1f}",
        }  # fmt: skip


class Brute:
    """All combinations under one capacity; the allocator is asked in the order in which answers can matter."""

    def __init__(self, pricer: Pricer, every: Sequence[Priced], capacity: int) -> None:
        self._pricer, self._capacity, self._every = pricer, capacity, every
        self._runs: dict[Candidate, bool] = {}

    def row(self) -> dict[str, str]:
        """The fastest that runs, and of those hardly slower the one that intervenes least, as plans are chosen."""
        fits = [each for each in self._every if each.worst.peak.total <= self._capacity]
        fastest = next(filter(self._run, sorted(fits, key=lambda each: each.seconds)))
        near = [each for each in fits if each.seconds <= fastest.seconds * (1 + SLACK)]
        best = next(filter(self._run, sorted(near, key=lambda each: (intervention(each.candidate), each.seconds))))
        return {
            "combinations": str(len(self._every)), "by_sums": str(len(fits)), "rehearsed": str(len(self._runs)),
            "fastest": f"{fastest.seconds:.6f}", "best_seconds": f"{best.seconds:.6f}", "best": changes(best.candidate),
        }  # fmt: skip

    def _run(self, priced: Priced) -> bool:
        if priced.candidate not in self._runs:
            self._runs[priced.candidate] = not self._pricer.rehearse(priced, self._capacity).failed
        return self._runs[priced.candidate]


def every(pricer: Pricer) -> Iterator[Candidate]:
    """All combinations of all options, each technique asked on the program the earlier ones leave."""

    def grown(candidate: Candidate, names: tuple[str, ...]) -> Iterator[Candidate]:
        if not names:
            yield candidate
            return
        offered = pricer.offered(names[0], pricer.price(candidate))
        if pricer.techniques[names[0]].scope == "component":
            for streamed in by_component(offered):
                yield from grown((*candidate, *streamed), names[1:])
            return
        if not any(option.neutral for option in offered):
            yield from grown(candidate, names[1:])
        for option in offered:
            yield from grown((*candidate, option), names[1:])

    return grown((), tuple(pricer.techniques))


def by_component(offered: Sequence[Option]) -> Iterator[Candidate]:
    """One option or none for each component."""
    names = dict.fromkeys(option.component for option in offered)
    choices = ((None, *(option for option in offered if option.component == name)) for name in names)
    return (tuple(option for option in choice if option is not None) for choice in product(*choices))


def changes(candidate: Candidate) -> str:
    """What is switched on."""
    return described(tuple(option for option in candidate if not option.neutral)) or "all on the card"


def read() -> list[dict[str, str]]:
    """Cells that were gone through before."""
    if not CELLS.exists():
        return []
    with CELLS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def regret(row: dict[str, str]) -> float:
    """How much slower the plan is than what brute force finds by the same rule, as a share."""
    return float(row["seconds"]) / float(row["best_seconds"]) - 1


def beyond(row: dict[str, str]) -> float:
    """How much slower than what brute force finds the bound is, as a share; it should not be."""
    return max(float(row["bound"]) / float(row["fastest"]) - 1 - 1e-6, 0.0)


def page(rows: Sequence[dict[str, str]]) -> str:
    """The table, and what it says in all."""
    worst = max((abs(regret(row)) for row in rows), default=0.0)
    missed = [row for row in rows if beyond(row)]
    combinations = sum(int(row["combinations"]) for row in rows)
    lines = [
        "# What is chosen against brute force\n",
        f"`python benchmarks/regret.py`; {DEVICE.name}, each pipeline as it is called by default.  Every combination",
        "of the techniques named is priced; in order of time the allocator is asked whether it runs within the budget,",
        f"until one does; of those at most {SLACK:.0%} slower the one that intervenes least is best, which is the rule",
        "of plans.  The bound is what a plan says nothing that fits is faster than.\n",
        f"{len(rows)} cells, {combinations:,} combinations.  Largest regret: {worst:.2%}.  Bounds that",
        f"hold: {len(rows) - len(missed)} of {len(rows)}.\n",
        "| model, budget | combinations | fit by sums | fastest | best by brute force | plan | regret | bound |",
        "|---|---:|---:|---:|---|---|---:|---:|",
    ]
    for row in rows:
        best, plan = (f"{float(row[key]):.2f} s" for key in ("best_seconds", "seconds"))
        same = "the same" if row["plan"] == row["best"] else row["plan"]
        lines.append(
            f"| {row['model']}, {row['budget']} GB | {row['combinations']} | {row['by_sums']} | "
            f"{float(row['fastest']):.2f} s | {best}: {row['best']} | {plan}: {same} | {regret(row):.2%} | "
            f"{float(row['bound']):.2f} s |"
        )
    if missed:
        lines.append("\n## Bounds that do not hold\n")
        lines += [f"- {row['model']}, {row['budget']} GB: {beyond(row):.2%} above the fastest" for row in missed]
        lines += [
            "\nTiles are priced only where no decode without them fits beside the leanest streams; with tiles more"
        ]
        lines += ["weights could stay, which the bound does not know."]
    lines.append("\n## Techniques\n")
    sets = dict.fromkeys((row["model"], row["techniques"]) for row in rows)
    lines += [f"- {model}: {', '.join(f'`{name}`' for name in names.split())}" for model, names in sets]
    spent = [sum(float(row[key]) for row in rows) for key in ("enumerating", "choosing")]
    lines.append(f"\nSeconds of the processor: {spent[0]:.0f} for brute force, {spent[1]:.0f} for the plans.")
    return "\n".join(lines) + "\n"


def write(rows: Sequence[dict[str, str]]) -> None:
    """All cells, and the page made of them."""
    with CELLS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "regret.md").write_text(page(rows), "utf-8")


def main() -> None:
    rows = read()
    for name in sys.argv[1:] or CASES:
        techniques, _ = CASES[name]
        if any(
            (row["model"], set(row["techniques"].split())) == (name.partition(",")[0], set(techniques)) for row in rows
        ):
            continue
        for row in cells(name):
            print(row, flush=True)
            rows.append(row)
        write(rows)
    write(rows)


if __name__ == "__main__":
    main()
