"""Measured peaks of a cell on the virtual GPU, kept in a file apart from predictions: a cell is measured once."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "virtual_gpu"))

import rig
from cells import Cell, Setting

from planner.techniques import DEFAULT, Option

ROOM = 192 * 10**9
"""Bytes of a card on which everything runs, for peaks of cells that ran out of memory."""
RAISED = re.compile(r"(?:[a-z_]\w*\.)+[A-Z]\w*(?:: |$)|[A-Z]\w*Error(?:: |$)")
"""The line of a traceback that says what was raised."""
PATIENCE = 10
"""Seconds on the clock for one of the processor, before a cell is given up as stuck."""
WHOLE = "whole"
RAN, OUT, FAILED = "ran", "out of memory", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Peaks in bytes of one cell, over the whole call or one phase of it."""

    cell: str
    model: str
    dtype: str
    height: int | None
    width: int | None
    frames: int | None
    images: int
    card: str
    cap: int
    context: int
    """Bytes of the cap that are not torch's."""
    options: str
    outcome: str
    """Under the cap: `ran`, `out of memory`, or `failed` with what the libraries said."""
    roomy: int
    """1 where the peaks are those of a card with room for everything, because the cell ran out of memory."""
    retries: int
    phase: str
    allocated: int
    reserved: int

    @property
    def is_of(self) -> Cell:
        """The cell that was measured."""
        setting = Setting(
            model=self.model, dtype=self.dtype, height=self.height, width=self.width, frames=self.frames,
            images=self.images,
        )  # fmt: skip
        return Cell(
            name=self.cell,
            setting=setting,
            card=self.card,
            cap=self.cap,
            options=options_of(self.options),
            context=self.context,
        )


TEXT = ("cell", "model", "dtype", "card", "options", "outcome", "phase")


def options_of(words: str) -> tuple[Option, ...]:
    """The options that `Cell.words` names."""
    return tuple(_option(*part.partition("=")[::2]) for part in words.split(" + ") if part != "nothing")


def _option(name: str, text: str) -> Option:
    single = any(technique.name == name and technique.scope == "component" for technique in DEFAULT)
    component, _, value = text.partition(":") if single else ("", "", text)
    return Option(technique=name, component=component, value=int(value) if value.isdigit() else value)


def on_the_card(
    model: str, dtype: str | None, request: dict[str, Any], options: list[list[Any]], seconds: int
) -> dict[str, Any]:
    """Sent to the virtual GPU: peaks of the call that a request stands for, after techniques were applied.

    `seconds` are of the processor, as a machine that others use may be slow.  Raises TimeoutError.
    """
    import signal

    import torch
    from inside import pipelines, smallvalues
    from inside.peaks import Peaks

    from planner.arguments import call_arguments
    from planner.program import Variant
    from planner.request import Request
    from planner.techniques import DEFAULT, Option

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    pipe = pipelines.shipped(model, dtype)
    peaks = Peaks(pipe)
    techniques = {technique.name: technique for technique in DEFAULT}
    outcome = "ran"
    try:
        for name, value, component in options:
            techniques[name].apply(pipe, Option(technique=name, value=value, component=component))
        call = call_arguments(pipe, Request.from_json(request), Variant())
        with torch.no_grad():
            pipe(**call)
    except torch.OutOfMemoryError:
        outcome = "out of memory"
    phases = {"whole": peaks.whole, **peaks.phases}
    return {"outcome": outcome, "retries": torch.cuda.memory_stats()["num_alloc_retries"], "phases": phases}


def versions() -> dict[str, str]:
    """Sent to the virtual GPU: what the measurements ran on."""
    import diffusers
    import torch

    number: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    cudnn = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return {"torch": torch.__version__, "cuDNN": cudnn, "diffusers": diffusers.__version__}


def measure(server: rig.Server, cell: Cell, limit: int) -> list[Measured]:
    """Under the cap, and where memory ran out once more with room, so that every cell has its peaks."""
    seen = _seen(server, cell, cell.cap, limit)
    outcome, roomy = seen["outcome"], 0
    if outcome == OUT:
        seen, roomy = _seen(server, cell, ROOM, limit), 1
        if seen["outcome"] == OUT:  # it ran out there too, so its peaks are not those of the whole call
            seen["phases"] = {WHOLE: {"allocated": 0, "reserved": 0}}
    return [
        _row(cell, outcome, roomy, seen["retries"], phase, peak["allocated"], peak["reserved"])
        for phase, peak in seen["phases"].items()
    ]


def unmeasured(cell: Cell, why: str) -> list[Measured]:
    """A cell left out, with the reason."""
    return [_row(cell, f"{FAILED}: {why}", 0, 0, WHOLE, 0, 0)]


def _seen(server: rig.Server, cell: Cell, total: int, limit: int) -> dict[str, Any]:
    device = cell.device
    sent = {
        "model": cell.setting.model,
        "dtype": cell.setting.dtype or None,
        "request": cell.setting.request.to_json(),
        "options": [[option.technique, option.value, option.component] for option in cell.options],
        "seconds": limit,
    }
    card = rig.card(cell.card) | {"vram": total}
    try:
        seen: dict[str, Any] = server.script(
            on_the_card, sent, warm=cell.setting.model, limit=PATIENCE * limit, **card, context=device.context
        )
    except rig.Failed as error:
        last = [line for line in str(error).splitlines() if line.strip() and not line.startswith(" ")]
        said = next((line for line in last if RAISED.match(line)), last[0])
        return {
            "outcome": f"{FAILED}: {said[:300]}",
            "retries": 0,
            "phases": {WHOLE: {"allocated": 0, "reserved": 0}},
        }
    return seen


def _row(cell: Cell, outcome: str, roomy: int, retries: int, phase: str, allocated: int, reserved: int) -> Measured:
    s = cell.setting
    return Measured(
        cell=cell.name, model=s.model, dtype=s.dtype, height=s.height, width=s.width, frames=s.frames, images=s.images,
        card=cell.card, cap=cell.cap, context=cell.device.context, options=cell.words, outcome=outcome, roomy=roomy,
        retries=retries, phase=phase,
        allocated=allocated, reserved=reserved,
    )  # fmt: skip


def read(file: Path) -> list[Measured]:
    """All rows measured so far."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [
            Measured(**{k: v if k in TEXT else int(v) if v else None for k, v in row.items()})
            for row in csv.DictReader(lines)
        ]  # type: ignore[arg-type]


def append(file: Path, rows: Iterable[Measured]) -> None:
    """Add rows; the heading comes with the first."""
    write(file, rows, "a")


def write(file: Path, rows: Iterable[Any], mode: str = "w", names: Sequence[str] = ()) -> None:
    """Values as lines of a table."""
    names = names or [each.name for each in fields(Measured)]
    new = mode == "w" or not file.exists()
    with file.open(mode, newline="") as lines:
        writer = csv.DictWriter(lines, names, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if (v := getattr(row, name)) is None else v for name in names})
