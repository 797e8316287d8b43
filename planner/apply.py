"""Apply: a plan's options on a live pipeline, all of them or none, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from planner import host
from planner.errors import ApplyFailed, BadRequest, PlannerError
from planner.holding import hold
from planner.packed import clings
from planner.refresh import refreshed
from planner.techniques import DEFAULT
from planner.techniques.base import Option, Technique, Undo
from planner.techniques.live import beside, in_reverse, modules, on_card, undone_on_error
from planner.techniques.offload import Offload
from planner.techniques.placement import Placement, check_free, remember_places
from planner.techniques.streaming import Streaming
from planner.techniques.vae_on_host import VaeOnHost
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.plan import Plan

APPLIED = "_vram_planner_applied"
"""Attribute of a pipeline that holds what takes its plan back, and of its components, which others may share."""
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, ImportError, OSError, NotImplementedError)
"""What torch, diffusers and accelerate raise when they will not do something."""


@dataclass(slots=True)
class Applied:
    """What a pipeline bears while a plan is applied to it."""

    undos: ExitStack


def configure(pipe: Any, plan: Plan, *, techniques: Sequence[Technique] = DEFAULT, device: str | None = None) -> None:
    """Configure `pipe` as `plan` says; a plan applied before is undone first.  Raises ApplyFailed, all undone."""
    able = _able(techniques, device)
    _check(pipe, plan, able)
    if getattr(pipe, APPLIED, None) is not None:
        revert(pipe)
    with ExitStack() as stack:
        stack.callback(_cleared(pipe, plan))
        stack.callback(in_reverse(map(hold, modules(pipe).values())))
        others = beside(pipe)
        for option in plan.options:
            stack.callback(_applied(able[option.technique], pipe, option))
        stack.callback(_capped(plan, others))
        stack.callback(refreshed(pipe))
        stack.callback(_marked(pipe))
        setattr(pipe, APPLIED, Applied(undos=stack.pop_all()))


def revert(pipe: Any) -> None:
    """Take back the plan applied to `pipe`.  Raises ApplyFailed where none is."""
    applied = getattr(pipe, APPLIED, None)
    if applied is None:
        raise ApplyFailed(f"No plan is applied to this {type(pipe).__name__}; there is nothing to revert.")
    delattr(pipe, APPLIED)
    applied.undos.close()


def is_applied(pipe: Any) -> bool:
    """Whether a plan of ours is applied."""
    return getattr(pipe, APPLIED, None) is not None


def check_alone(pipe: Any) -> None:
    """Raise ApplyFailed where a plan is applied to components that another pipeline shares with this one."""
    bearing = [name for name, module in modules(pipe).items() if APPLIED in vars(module)]
    if bearing:
        raise ApplyFailed(
            f"A plan is applied to the {' and '.join(bearing)} of this {type(pipe).__name__} through a pipeline that "
            "shares them; call plan.revert on that one first."
        )


def _marked(pipe: Any) -> Undo:
    """A mark on each component, for pipelines that share it."""
    bearing = modules(pipe).values()
    for module in bearing:
        vars(module)[APPLIED] = True

    def undo() -> None:
        for module in bearing:
            vars(module).pop(APPLIED, None)

    return undo


def _able(techniques: Sequence[Technique], device: str | None) -> dict[str, Technique]:
    """By name; where a device is given, our own compute there."""
    own = (Placement, Streaming, Offload, VaeOnHost)
    return {t.name: replace(t, device=device) if device is not None and isinstance(t, own) else t for t in techniques}


def _check(pipe: Any, plan: Plan, able: dict[str, Technique]) -> None:
    """Everything that can be known before anything is touched."""
    if type(pipe).__name__ != plan.pipeline:
        raise BadRequest(f"The plan is for a {plan.pipeline}, this is a {type(pipe).__name__}; plan this pipeline.")
    if unknown := [option.technique for option in plan.options if option.technique not in able]:
        raise BadRequest(
            f"The plan uses {unknown[0]}, which is not among the {len(able)} techniques given; pass it too: "
            "plan.apply(pipe, techniques=…)."
        )
    if not is_applied(pipe):
        check_alone(pipe)
        check_free(pipe)


def _cleared(pipe: Any, plan: Plan) -> Undo:
    """An empty card, as the promise has it: weights that stay where they lay would leave holes around them."""
    import torch

    here = on_card(pipe)
    held = any(map(clings, modules(pipe).values()))
    if not here or held or all(option.neutral for option in plan.options):
        return lambda: None
    if here > (free := host.available_host_ram()):
        raise ApplyFailed(
            f"{format_bytes(here)} of weights are on the card and the plan moves them, but {format_bytes(free)} of "
            "host RAM are free; load the pipeline on the host, without pipe.to('cuda')."
        )
    undo = remember_places(pipe)
    with undone_on_error(undo):
        for part in modules(pipe).values():
            part.to("cpu")
        torch.cuda.empty_cache()
    return undo


def _applied(technique: Technique, pipe: Any, option: Option) -> Undo:
    try:
        return technique.apply(pipe, option)
    except PlannerError:
        raise
    except REFUSALS as error:
        raise ApplyFailed(
            f"{option.technique}={option.value} could not be applied: {error}; the pipeline is as it was."
        ) from error


def _capped(plan: Plan, others: int) -> Undo:
    """The hard cap: torch itself refuses to reserve more than the plan's capacity, and the bytes that others hold."""
    import torch

    if not torch.cuda.is_available():
        return lambda: None
    before = torch.cuda.get_per_process_memory_fraction()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if plan.capacity > total:
        raise ApplyFailed(
            f"The plan lets torch use {format_bytes(plan.capacity)}, this card has {format_bytes(total)}; "
            "plan with the card as it is."
        )
    torch.cuda.set_per_process_memory_fraction(min(plan.capacity + others, total) / total)
    return lambda: torch.cuda.set_per_process_memory_fraction(before)
