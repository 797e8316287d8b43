"""Minimum: the least budget within which there is a plan at all, to a stated share of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

from planner.collector import SELDOM, collecting
from planner.device import Device
from planner.plain import record
from planner.plan import HOST, Plan
from planner.programs import Tell, silent
from planner.reasons import Shortage
from planner.study import Study
from planner.surveys import TOLERANCE
from planner.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Smallest:
    """The least budget within which a plan was found, and the next one, in which none was."""

    plan: Plan
    """Made for that budget."""
    below: int
    """Bytes, at most 2 % fewer, within which nothing fits."""
    phase: str
    """The one that is over then."""

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return record(self)


@collecting(SELDOM)
def smallest_of(study: Study, device: Device, *, host: int | None = None, tell: Tell = silent) -> Smallest:
    """The least budget, by halving the ratio between what fits and what does not until they are TOLERANCE apart.

    Each budget is asked about as a plan for it would be, with its last resorts and the allocator's verdict.  The
    card's own memory is no limit.  Raises BadRequest, TraceFailed, or Infeasible where host memory is short.
    """
    missing, plan = _first(study, device, host, tell)
    while missing.budget < (near := int(plan.budget * (1 - TOLERANCE))):
        budget = min(isqrt(missing.budget * plan.budget), near)
        tell(f"{format_bytes(budget)}, between {format_bytes(missing.budget)} and {format_bytes(plan.budget)}")
        found = study.attempt(device, budget=budget, host=host)
        if isinstance(found, Plan):
            plan = found
        else:
            missing = _Missing(budget, found)
    return Smallest(plan=plan, below=missing.budget, phase=missing.shortage.phase)


@dataclass(frozen=True, slots=True)
class _Missing:
    """A budget within which nothing fits, and what is missing there."""

    budget: int
    shortage: Shortage


def _first(study: Study, device: Device, host: int | None, tell: Tell) -> tuple[_Missing, Plan]:
    """From no memory at all to what would do there, until that does."""
    budget = device.context + 1
    found = study.attempt(device, budget=budget, host=host)
    while True:
        assert isinstance(found, Shortage), f"{budget} bytes hold nothing, not even cuBLAS's workspace"
        missing = _Missing(budget, found)
        if found.phase == HOST or found.smallest_budget <= budget:
            study.plan(device, budget=budget, host=host)  # raises Infeasible
        budget = found.smallest_budget
        tell(f"{format_bytes(budget)} first")
        found = study.attempt(device, budget=budget, host=host)
        if isinstance(found, Plan):
            return missing, found
