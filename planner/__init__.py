"""vram-planner: the fastest combination of diffusers memory techniques that fits a VRAM budget.

import planner

plan = planner.auto_configure(pipe, budget="8GB", height=2224, width=3840)
pipe("a lighthouse at dawn", height=2224, width=3840)
plan.revert(pipe)
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.auto import anatomy, auto_configure, compare, frontier, largest, load, plan, smallest
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
    from planner.minimum import Smallest
    from planner.plan import Infeasible, Plan
    from planner.probe import probe
    from planner.request import Budget, Fidelity, Request
    from planner.surveys import Anatomy, Frontier, Largest, Row
    from planner.techniques import default_techniques

__version__ = "0.1.0"

__all__ = [
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
    "Smallest",
    "TraceFailed",
    "UnknownDevice",
    "UnknownModel",
    "anatomy",
    "auto_configure",
    "card",
    "compare",
    "default_techniques",
    "frontier",
    "largest",
    "load",
    "plan",
    "probe",
    "smallest",
]

_ROOMS = {
    "auto": ("anatomy", "auto_configure", "compare", "frontier", "largest", "load", "plan", "smallest"),
    "cards": ("card",),
    "device": ("Device",),
    "errors": (
        *("ApplyFailed", "BadBudget", "BadRequest", "PlannerError"),
        *("TraceFailed", "UnknownDevice", "UnknownModel"),
    ),
    "minimum": ("Smallest",),
    "plan": ("Infeasible", "Plan"),
    "probe": ("probe",),
    "request": ("Budget", "Fidelity", "Request"),
    "surveys": ("Anatomy", "Frontier", "Largest", "Row"),
    "techniques": ("default_techniques",),
}
"""Where each public name lives; a room is entered when the first of its names is used."""


def __getattr__(name: str) -> object:
    room = next((room for room, names in _ROOMS.items() if name in names), None)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _House(ModuleType):
    """`planner.plan` and `planner.probe` are the functions, also once the rooms of these names were entered."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _House
