"""vram-planner: the fastest combination of diffusers memory techniques that fits a VRAM budget.

import planner

plan = planner.auto_configure(pipe, budget="8GB", height=2224, width=3840)
pipe("a lighthouse at dawn", height=2224, width=3840)
plan.revert(pipe)
"""

from planner.auto import anatomy, auto_configure, compare, frontier, largest, load, plan
from planner.cards import card
from planner.device import Device
from planner.errors import (
    ApplyFailed,
    BadBudget,
    BadRequest,
    PlannerError,
    TraceFailed,
    UnknownDevice,
    UnknownModel,
)
from planner.plan import Infeasible, Plan
from planner.probe import probe
from planner.request import Budget, Fidelity, Request
from planner.surveys import Anatomy, Frontier, Largest, Row
from planner.techniques import DEFAULT as DEFAULT_TECHNIQUES

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_TECHNIQUES",
    "Anatomy",
    "ApplyFailed",
    "BadBudget",
    "BadRequest",
    "Budget",
    "Device",
    "Fidelity",
    "Frontier",
    "Infeasible",
    "Largest",
    "Plan",
    "PlannerError",
    "Request",
    "Row",
    "TraceFailed",
    "UnknownDevice",
    "UnknownModel",
    "anatomy",
    "auto_configure",
    "card",
    "compare",
    "frontier",
    "largest",
    "load",
    "plan",
    "probe",
]
