"""Random combinations of all techniques on real pipelines: each fits where the plan says so, and is taken back.

    python benchmarks/combinations.py [--count 300] [--seed 1] [--first 0] [--minutes 60] [--cache FOLDER] [--again]

A combination is drawn (combining.py), applied to the full-size pipeline on the virtual GPU under the cap of its plan,
run for two steps, three times in a row, and reverted.  What was seen is kept in results/combinations.csv, so an
interrupted run goes on; each seed has a page of its own.
`--again` draws and runs those of the seed anew that were not as promised.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import measuring  # noqa: E402
from accuracy import TooLong, limited  # noqa: E402
from combining import FAMILIES, Drawn, draw  # noqa: E402
from measuring import FAILED, OUT, RAN, rig  # noqa: E402

from planner.errors import PlannerError  # noqa: E402
from planner.pricing import described  # noqa: E402

FILE = HERE / "results" / "combinations.csv"
CAUSES = HERE / "results" / "combinations_causes.toml"
"""What is known of rows that were not as promised, and of what was mended between commits."""
LIMIT = 300
"""Seconds to draw a combination or to run it, after which it is left out."""
UNDRAWN = "not drawn"
REST = 2**20
"""Bytes of a large block that torch leaves uncut at most: which block is at hand decides so much.  CogVideoX of seed 4
asked for 16,548,489,046 bytes at its peak where 16,548,513,792 were counted in whole 512s, and held 524,288 more."""
CALLS = 3
"""Calls of a pipeline in a row; what the first leaves in the cache is what the next one meets."""
HEAD = """# Random combinations of all techniques

`python benchmarks/combinations.py --seed {seed}`; {ran_on}.

Each combination was drawn from what the techniques offer, applied to the full-size pipeline through `plan.apply`, run
for two steps under the hard cap of its plan, and reverted.  Error is promised ÷ seen − 1 of the allocated peak.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One combination and what was seen of it; bytes."""

    name: str
    model: str
    request: str
    card: str
    options: str
    capacity: int
    promised: int
    outcome: str
    allocated: int = 0
    reserved: int = 0
    retries: int = 0
    left: str = ""
    """What the revert did not restore; empty where the state was as before."""
    code: str = ""
    """Commit of the planner that drew and ran it."""

    @property
    def error(self) -> float:
        """Promised ÷ seen − 1."""
        return self.promised / self.allocated - 1 if self.allocated else 0.0

    @property
    def kept(self) -> bool:
        """Whether it ran within its cap as promised and left nothing behind.

        Short of memory, torch empties its cache and cuDNN takes leaner engines: then the promise is the most it takes.
        """
        if self.outcome != RAN or self.left or self.reserved > self.capacity:
            return False
        low = self.allocated - REST if self.retries else 0.995 * self.allocated
        high = self.capacity if self.retries else 1.01 * self.allocated
        return low <= self.promised <= high


def on_the_card(model: str, dtype: str | None, plan: dict[str, Any], calls: int) -> dict[str, Any]:
    """Sent to the virtual GPU: calls under a plan, figures of the first, and what is left of it when it is reverted."""
    import gc
    from typing import Any

    import torch
    from inside import pipelines, smallvalues

    from planner import Plan
    from planner.arguments import call_arguments
    from planner.program import Variant
    from planner.snapshot import snapshot
    from planner.techniques import quantization

    quantization.is_ghost = lambda _: True  # of each shape one weight is rounded, the others are made like it
    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    made, pipe = Plan.from_json(plan), pipelines.shipped(model, dtype)
    before = snapshot(pipe)

    def measured() -> dict[str, Any]:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"allocated": allocated, "reserved": reserved, "retries": torch.cuda.memory_stats()["num_alloc_retries"]}

    made.apply(pipe)
    outcome, seen = "ran", dict[str, Any]()
    try:
        for _ in range(calls):
            with torch.no_grad():
                pipe(**call_arguments(pipe, made.request, Variant()))
            seen = seen or measured()
    except torch.OutOfMemoryError as error:
        outcome = f"out of memory{' in a further call' if seen else ''}: {str(error).partition('.')[0]}"
        seen = seen or measured()
    seen["outcome"] = outcome
    made.revert(pipe)
    torch._C._cuda_clearCublasWorkspaces()
    left = list(before.difference(snapshot(pipe))[:3])
    pipe.scheduler = None  # some keep what the denoiser said last
    gc.collect()
    held = torch.cuda.memory_allocated()
    left += [f"{held} bytes on the card"] if held > 2**20 else []
    return {**seen, "left": "; ".join(left)}


def seen(server: rig.Server, drawn: Drawn) -> Row:
    """Run one combination."""
    plan = drawn.plan
    known = {
        "name": drawn.name, "model": plan.model, "request": drawn.words, "card": plan.device.name,
        "options": described(plan.options), "capacity": plan.capacity, "promised": plan.promise.allocated,
    }  # fmt: skip
    sent = {"model": plan.model, "dtype": plan.request.dtype, "plan": plan.to_json(), "calls": CALLS}
    card = rig.card(plan.device.name) | {"vram": plan.device.total}
    try:
        answer = server.script(on_the_card, sent, warm=plan.model, limit=LIMIT, **card, context=plan.device.context)
    except rig.Failed as error:
        return Row(**known, outcome=f"{FAILED}: {_said(str(error))}")
    return Row(**known, **answer)


def _said(traceback: str) -> str:
    """The line that names the error."""
    lines = [line for line in traceback.splitlines() if line.strip() and not line.startswith(" ")]
    return next((line for line in lines if "Error" in line or "Failed" in line), lines[0])[:300]


def read(file: Path) -> list[Row]:
    """What was seen so far."""
    if not file.exists():
        return []
    counts = {"capacity", "promised", "allocated", "reserved", "retries"}
    with file.open(newline="") as lines:
        return [Row(**{k: int(v) if k in counts else v for k, v in line.items()}) for line in csv.DictReader(lines)]


def append(file: Path, row: Row) -> None:
    """One more row."""
    names = [field.name for field in fields(Row)]
    new = not file.exists()
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, names, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: getattr(row, name) for name in names})


def page(rows: Sequence[Row], seed: int, ran_on: str) -> str:
    """The summary, what went wrong, and every row."""
    drawn = [row for row in rows if not row.outcome.startswith(UNDRAWN)]
    families = ", ".join(f"{model} {count}" for model, count in sorted(Counter(row.model for row in drawn).items()))
    ran = sum(row.outcome == RAN for row in drawn)
    out = sum(row.outcome.startswith(OUT) for row in drawn)
    clean = sum(not row.left for row in drawn)
    failed = len(drawn) - ran - out
    lines = [
        HEAD.format(seed=seed, ran_on=ran_on),
        f"- {len(drawn)} combinations: {families}.",
        f"- {ran} ran, {out} ran out of memory, {failed} failed; {clean} left nothing behind.",
    ]
    if calm := [row.error for row in drawn if row.outcome == RAN and not row.retries]:
        near = sum(-0.005 <= error <= 0.01 for error in calm)
        lines.append(
            f"- Where memory was never short: {min(calm):+.2%} to {max(calm):+.2%}, {near} of {len(calm)} "
            "within −0.5 % and +1 %."
        )
    known = tomllib.loads(CAUSES.read_text("utf-8")) if CAUSES.exists() else {}
    lines += _commits(drawn, known.get("commits", {}))
    return "\n".join([*lines, *_problems(drawn, known.get("rows", {})), *_refused(rows), *_table(drawn)]) + "\n"


def _commits(rows: Sequence[Row], said: dict[str, str]) -> Iterator[str]:
    """How many each commit drew, and what is to be known of it."""
    for code, count in Counter(row.code for row in rows).items():
        kept = sum(row.kept for row in rows if row.code == code)
        yield f"- {count} drawn by {code}, {kept} of them as promised. {said.get(code, '')}".rstrip()


def _problems(rows: Sequence[Row], causes: dict[str, str]) -> Iterator[str]:
    if wrong := [row for row in rows if not row.kept]:
        yield "\n## Not as promised\n"
        for row in wrong:
            off = row.left or (f"{row.error:+.2%}" if row.outcome == RAN else "")
            cause = f" – {causes[row.name]}" if row.name in causes else ""
            yield f"- {row.name} {row.model} {row.request}, {row.options}: {row.outcome} {off}".rstrip() + cause


def _refused(rows: Sequence[Row]) -> Iterator[str]:
    if refused := [row for row in rows if row.outcome.startswith(UNDRAWN)]:
        yield "\n## Not drawn\n"
        yield from (f"- {row.name} {row.model}: {row.outcome}" for row in refused)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "\n## All\n"
    yield "| | pipeline | request | card | options | cap GB | promised | seen | error |"
    yield "|---|---|---|---|---|---:|---:|---:|---:|"
    for row in rows:
        sizes = [f"{size / 1e9:.3f}" for size in (row.capacity, row.promised, row.allocated)]
        error = "short" if row.retries else f"{row.error:+.2%}"
        yield "| " + " | ".join((row.name, row.model, row.request, row.card, row.options, *sizes, error)) + " |"


def page_of(seed: int) -> Path:
    """Each seed has a page of its own."""
    return FILE.with_suffix(".md") if seed == 1 else FILE.with_name(f"{FILE.stem}_{seed}.md")


def run(asked: argparse.Namespace, server: rig.Server) -> None:
    """Draw and run what is not in the file yet, as long as time allows."""
    seed = f"{asked.seed}/"
    kept = [row for row in read(FILE) if row.kept or not asked.again or not row.name.startswith(seed)]
    if asked.again and FILE.exists():
        FILE.unlink()
        for row in kept:
            append(FILE, row)
    known = {row.name for row in kept}
    code = _commit()
    ends = time.monotonic() + asked.minutes * 60
    for number in range(asked.first, asked.first + asked.count):
        if f"{asked.seed}/{number}" in known or time.monotonic() > ends:
            continue
        try:
            with limited(LIMIT):
                row = seen(server, draw(asked.seed, number, asked.cache))
        except (PlannerError, TooLong) as refused:
            model = FAMILIES[number % len(FAMILIES)].model
            row = Row(
                name=f"{asked.seed}/{number}", model=model, request="", card="", options="", capacity=0, promised=0,
                outcome=f"{UNDRAWN}: {refused}",
            )  # fmt: skip
        row = replace(row, code=code)
        append(FILE, row)
        print(row.name, row.model, row.request, row.options, row.outcome, f"{row.error:+.2%}", row.left, flush=True)


def _commit() -> str:
    asked = subprocess.run(
        ["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no combination after so many")
    parser.add_argument("--again", action="store_true", help="those that were not as promised, too")
    parser.add_argument("--cache", type=Path, help="folder of recorded programs")
    asked = parser.parse_args()
    with rig.Server() as server:
        run(asked, server)
        ran_on = ", ".join(f"{name} {version}" for name, version in server.script(measuring.versions).items())
    rows = sorted(
        (row for row in read(FILE) if row.name.startswith(f"{asked.seed}/")),
        key=lambda row: int(row.name.split("/")[1]),
    )
    page_of(asked.seed).write_text(page(rows, asked.seed, ran_on), "utf-8")


if __name__ == "__main__":
    main()
