"""The plan: what was chosen, what it promises, and why.  A value, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from planner.device import Device, Excess
from planner.errors import BadRequest, PlannerError
from planner.plain import record
from planner.request import Fidelity, Request
from planner.techniques import DEFAULT
from planner.techniques.base import Option, Technique
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.verify import Verdict

FORMAT: Literal[1] = 1
"""Version of the JSON form."""
HOST = "host memory"
"""Stands where a phase would, for what is short there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePromise:
    """One phase: bytes held at its peak, by kind, and its seconds over the whole request."""

    name: str
    """Component, and its method where that is not `forward`: `unet`, `vae.decode`."""
    weights: int
    """Bytes of the weights on the card."""
    activations: int
    """Bytes of the pipeline's tensors, and what the allocator's blocks hold beyond their tensors."""
    scratch: int
    """Bytes of workspaces and temporaries of the kernel that runs at the peak."""
    peak: int
    """Bytes as `torch.cuda.max_memory_allocated` tells them during the phase: the three above."""
    seconds: float
    """Over all calls of the component."""
    grown: float = 1.0
    """Factor by which earlier runs that were verified multiplied the bytes."""
    slower: float = 1.0
    """Factor by which they multiplied the seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a run will show, bytes and seconds."""

    derived: ClassVar = ("needed",)
    phases: tuple[PhasePromise, ...]
    """In order of running."""
    allocated: int
    """Bytes of `torch.cuda.max_memory_allocated`."""
    reserved: int
    """Bytes of `torch.cuda.max_memory_reserved` under the budget."""
    context: int
    """Bytes the process holds outside torch."""
    host: int
    """Bytes of weights that wait in host memory."""
    seconds: float
    """Of the whole call."""

    @property
    def needed(self) -> int:
        """Least bytes of the card: the allocated peak and the context."""
        return self.allocated + self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Something not chosen, and the reason with its number."""

    what: str
    """Options, or an option of the plan that would be left out."""
    reason: str
    """In words, with the number that decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The candidate chosen for a request on a device."""

    derived: ClassVar = ("headroom", "capacity", "format")
    model: str
    """As it was asked for."""
    pipeline: str
    """Class name, of diffusers."""
    dtype: str
    """Dtype of the denoiser's weights as they are loaded."""
    request: Request
    """With what the pipeline's profile says where nothing was asked."""
    device: Device
    budget: int
    """Bytes of the card for this process, context included."""
    options: tuple[Option, ...]
    """In order of applying."""
    promise: Promise
    """What a run will show."""
    baseline: Promise
    """The same request with nothing switched on and every component on the card."""
    baseline_fits: bool
    """Whether that runs within the budget."""
    bound: float
    """Seconds; no combination that fits is faster."""
    explored: int
    """How many combinations were priced; all others were ruled out by what they can be at best."""
    rejected: tuple[Rejection, ...] = ()
    """What was not chosen, and why."""
    notes: tuple[str, ...] = ()
    """What is worth knowing before running it."""
    combinations: int = 0
    """How many the options on offer make, those that clash included; 0 where nobody counted."""

    @property
    def headroom(self) -> int:
        """Bytes of the budget that stay free at the peak."""
        return self.budget - self.promise.needed

    @property
    def capacity(self) -> int:
        """Bytes torch may reserve: the budget less the context."""
        return self.budget - self.promise.context

    @property
    def format(self) -> Literal[1]:
        """Version of the JSON form."""
        return FORMAT

    def option(self, technique: str) -> Option | None:
        """The option of a technique, None where it stays off."""
        return next((option for option in self.options if option.technique == technique), None)

    def apply(self, pipe: Any, *, device: str | None = None, techniques: Sequence[Technique] = DEFAULT) -> None:
        """Configure a live pipeline in place and set the hard cap; a plan applied before is undone first.

        `device`: where to compute, by default `cuda` where there is one, else `cpu`.  `techniques`: those the plan was
        made with.  Raises ApplyFailed; the pipeline is then as it was.
        """
        from planner import apply

        apply.configure(pipe, self, techniques=techniques, device=device)

    def revert(self, pipe: Any) -> None:
        """Give the pipeline back as it was before `apply`.  Raises ApplyFailed where no plan is applied."""
        from planner import apply

        apply.revert(pipe)

    def verify(self, run: Callable[[], object], pipe: Any = None, *, learn: bool = True) -> Verdict:
        """Run a call and hold it against the promise; `print` of the verdict is a table.

        With `pipe`, the pipeline this plan is applied to, phases are told apart, and what they show makes later plans
        for such components on this card better, unless `learn` is false.
        """
        from planner import verify

        return verify.verify(self, run, pipe, learn=learn)

    def explain(self) -> str:
        """The plan, its promise and its reasons as text of at most 80 columns."""
        from planner import explain

        return explain.as_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, memory over time, the phases and the code."""
        from planner import report

        return report.cell(self)

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps` that `from_json` reads back as this plan."""
        return record(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str) -> Plan:
        """The plan of `to_json`, as a value or as text.  Raises BadRequest for anything else."""
        try:
            given = dict(json.loads(data) if isinstance(data, str) else data)
            if given["format"] != FORMAT:
                raise BadRequest(f"The plan is of another format than {FORMAT}; make it anew with this version.")
            own = {name: value for name, value in given.items() if name not in cls.derived}
            return cls(
                **own
                | {
                    "request": Request.from_json(given["request"]),
                    "device": _device(given["device"]),
                    "options": tuple(map(option_of, given["options"])),
                    "promise": _promise(given["promise"]),
                    "baseline": _promise(given["baseline"]),
                    "rejected": tuple(Rejection(**r) for r in given["rejected"]),
                    "notes": tuple(given["notes"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, PlannerError):
                raise
            raise BadRequest(f"This is not a plan as to_json writes it: {error!r}; make it anew.") from error


def _device(data: Mapping[str, Any]) -> Device:
    pairs = {name: tuple(data[name]) for name in ("compute_capability", "pcie")}
    excess = tuple(Excess(**each) for each in data.get("excess", ()))
    return Device(**{**data, **pairs, "excess": excess})


def option_of(data: Mapping[str, Any]) -> Option:
    """The option that `plain` made these data of."""
    return Option(**{**data, "fidelity": Fidelity.parse(data["fidelity"]), "calls": tuple(data["calls"])})


def _promise(data: Mapping[str, Any]) -> Promise:
    own = {name: value for name, value in data.items() if name not in Promise.derived}
    return Promise(**{**own, "phases": tuple(PhasePromise(**phase) for phase in data["phases"])})


HOST, DISK = "host memory", "disk"
"""What a shortage calls its phase where not the card is too small."""


class Infeasible(PlannerError):
    """No combination fits: exit code 3.  Carries the phase, the bytes over, and what would be enough."""

    def __init__(self, *, leanest: Plan, phase: str, over: int, smallest_budget: int, largest_size: str = "") -> None:
        self.leanest, self.phase, self.over = leanest, phase, over
        self.smallest_budget, self.largest_size = smallest_budget, largest_size
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        plan, asked = self.leanest, f"No combination fits {self.leanest.model} into {format_bytes(self.leanest.budget)}"
        advice = f"a budget that would do is {format_bytes(self.smallest_budget)}"
        if self.phase in (HOST, DISK):
            more = f"; else {advice}" if self.smallest_budget > plan.budget else ""
            enough = f", {format_bytes(plan.promise.host)} would do" if self.phase == HOST else ""
            missing = f"{format_bytes(self.over)} of {self.phase} are missing{enough}"
            return f"{asked}: {missing}; allow more or free some{more}."
        chosen = ", ".join(map(str, plan.options)) or "nothing switched on"
        if self.largest_size:
            advice += f", the largest image that fits is {self.largest_size}"
        return f"{asked}: the leanest ({chosen}) is {format_bytes(self.over)} over in {self.phase}; {advice}."


def with_notes(plan: Plan, *notes: str) -> Plan:
    """The same plan with further notes."""
    return replace(plan, notes=(*plan.notes, *notes))
