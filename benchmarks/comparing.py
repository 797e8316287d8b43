"""What is said about a cell beside what was measured."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from measuring import FAILED, OUT, RAN, ROOM, WHOLE, Measured

from planner.device import Device
from planner.errors import PlannerError
from planner.pricing import Priced, Pricer
from planner.programs import Programs
from planner.rehearsal import Rehearsal
from planner.techniques import DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Peaks in bytes of one cell, over the whole call or one phase of it."""

    cell: str
    model: str
    dtype: str
    size: str
    images: int
    card: str
    cap: int
    options: str
    phase: str
    said: str
    """Under the cap: `fits`, `does not fit`, or why nothing is said."""
    outcome: str
    roomy: int
    predicted_allocated: int
    allocated: int
    predicted_reserved: int
    reserved: int

    @property
    def errors(self) -> tuple[float, float]:
        """Of the allocated and the reserved peak; above zero, too much was promised."""
        return self.predicted_allocated / self.allocated - 1, self.predicted_reserved / self.reserved - 1

    @property
    def has_errors(self) -> bool:
        """Whether there are peaks on both sides."""
        return bool(self.allocated and self.predicted_allocated)


FITS, NOT = "fits", "does not fit"


def read(file: Path) -> list[Compared]:
    """The rows as they were written."""
    numbers = {field.name for field in fields(Compared) if field.type == "int"}
    with file.open(newline="") as lines:
        rows = csv.DictReader(lines)
        return [Compared(**{k: int(v) if k in numbers else v for k, v in row.items()}) for row in rows]  # type: ignore[arg-type]


def compare(rows: Sequence[Measured], programs: Programs) -> list[Compared]:
    """The rows of one cell, the whole call first.  Peaks are compared under the cap where both run under it."""
    cell, outcome = rows[0].is_of, rows[0].outcome
    if outcome.startswith(FAILED):
        return unsaid(rows, "")
    pricer = Pricer(programs, cell.device, cell.setting.request, DEFAULT)
    try:
        priced = pricer.price(cell.options)
        said, predicted = _said(pricer, priced, cell.device, outcome)
    except PlannerError as error:
        return unsaid(rows, str(error))
    return [_compared(row, said, predicted.get(row.phase, (0, 0))) for row in rows]


def unsaid(rows: Sequence[Measured], why: str) -> list[Compared]:
    """The rows of a cell of which nothing is predicted."""
    return [_compared(row, f"{FAILED}: {why}" if why else "", (0, 0)) for row in rows]


def _said(pricer: Pricer, priced: Priced, device: Device, outcome: str) -> tuple[str, dict[str, tuple[int, int]]]:
    capped = pricer.rehearse(priced, device.total - device.context)
    said = NOT if capped.failed else FITS
    if outcome == RAN:
        return said, {} if capped.failed else _peaks(capped)
    return said, _peaks(pricer.rehearse(priced, ROOM - device.context)) if outcome == OUT else {}


def _peaks(seen: Rehearsal) -> dict[str, tuple[int, int]]:
    return {WHOLE: (seen.allocated, seen.reserved)} | {name: (a, r) for name, a, r in seen.phases}


def _compared(row: Measured, said: str, predicted: tuple[int, int]) -> Compared:
    frames = f"×{row.frames}" if row.frames else ""
    size = f"{row.width}×{row.height}{frames}" if row.width else f"usual{frames}"
    return Compared(
        cell=row.cell, model=row.model, dtype=row.dtype, size=size, images=row.images, card=row.card, cap=row.cap,
        options=row.options, phase=row.phase, said=said, outcome=row.outcome, roomy=row.roomy,
        predicted_allocated=predicted[0], allocated=row.allocated,
        predicted_reserved=predicted[1], reserved=row.reserved,
    )  # fmt: skip
