"""The whole story: a pipeline and a budget become a plan, and the plan a configured pipeline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner import apply, host, probe, profiles, reasons
from planner.choose import Chooser, Limits, NothingFits
from planner.device import Device
from planner.errors import BadRequest
from planner.plan import Plan
from planner.profiles import PipelineProfile
from planner.programs import FromPipe, FromProfile, Programs, Source
from planner.request import PICTURES, Request
from planner.techniques import DEFAULT
from planner.techniques.base import Technique
from planner.units import format_bytes


def auto_configure(
    pipe: Any, *, techniques: Sequence[Technique] = DEFAULT, device: Device | None = None, **wanted: Any
) -> Plan:
    """Plan for a live pipeline and configure it in place; `plan.revert(pipe)` takes it back.

    `wanted`: fields of `Request` by name, such as `budget="8GB"`, `height=2224`, `width=3840`.  Raises BadRequest,
    Infeasible or ApplyFailed; the pipeline is then untouched.
    """
    if apply.is_applied(pipe):
        apply.revert(pipe)
    made = plan(pipe, techniques=techniques, device=device, **wanted)
    apply.configure(pipe, made, techniques=techniques)
    return made


def plan(
    model: Any,
    *,
    device: Device | None = None,
    techniques: Sequence[Technique] = DEFAULT,
    request: Request | None = None,
    components: Sequence[str] = (),
    cache: Path | None = None,
    **wanted: Any,
) -> Plan:
    """The fastest combination of techniques that fits; nothing is changed.

    `model`: a shipped profile's name or hub id, a folder in hub layout, or a live pipeline.  `device`: one of `probe()`
    or `card("rtx-3070")`; by default the first card of this machine.  `components`: optional ones to load, such as
    `safety_checker`.  `cache`: folder of recorded programs, by default the user's cache.  `wanted`: fields of
    `Request`.  Raises BadRequest, TraceFailed or Infeasible.
    """
    asked = Request.from_json({**(request.to_json() if request else {}), **wanted})
    card = device or _card(model)
    budget = asked.budget.resolve(card)
    name, source, asked, dtype = _source(model, asked, components)
    programs = Programs(source, asked, cache or cache_folder(), techniques)
    chooser = Chooser(programs, card, asked, techniques)
    order = reasons.Order(model=name, dtype=dtype, request=asked, device=card, budget=budget)
    limits = Limits(capacity=budget - card.context, host=_host_ram(asked, device))
    if limits.capacity <= 0:
        raise BadRequest(
            f"A budget of {format_bytes(budget)} leaves nothing beside the CUDA context of "
            f"{format_bytes(card.context)}; ask for more."
        )
    try:
        return reasons.plan_of(chooser.choose(limits), chooser, order)
    except NothingFits as nothing:
        raise reasons.infeasible(nothing, chooser, order) from nothing
    finally:
        programs.keep()


def _card(model: Any) -> Device:
    """The card of this machine that a run would use; what this process holds of it already is free to the plan."""
    torch = sys.modules.get("torch")
    if isinstance(model, (str, Path, PipelineProfile)) or torch is None or not torch.cuda.is_initialized():
        return probe.probe_one()
    card = probe.probe_one(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    held = torch.cuda.memory_reserved() + card.context
    return replace(card, free=min(card.free + held, card.total))


def cache_folder() -> Path:
    """Where recorded programs are kept for this user."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("vram-planner")) / "programs"


def _source(model: Any, request: Request, components: Sequence[str]) -> tuple[str, Source, Request, str]:
    if not isinstance(model, (str, Path, PipelineProfile)):
        return type(model).__name__, FromPipe(model), request, ""
    profile = model if isinstance(model, PipelineProfile) else profiles.resolve(model)
    profile = profile.including(*components)
    name = profile.name if profile.hub_id else str(model)
    return name, FromProfile(profile, request.dtype), with_defaults(request, profile), request.dtype or profile.dtype


def with_defaults(request: Request, profile: PipelineProfile) -> Request:
    """What the request leaves open, as the profile says it is usually asked for."""
    usual = profile.defaults
    open_ = {
        name: getattr(usual, name)
        for name in ("height", "width", "frames", "steps", "guidance", "strength", *PICTURES)
        if getattr(request, name) in (None, ())
    }
    return replace(request, **open_, extra=tuple((dict(usual.extra) | dict(request.extra)).items()))


def _host_ram(request: Request, device: Device | None) -> int | None:
    """The host's budget: as asked; for a card of this machine what is available; for another machine's no limit."""
    if request.host_ram is not None or device is not None:
        return request.host_ram
    return host.available_host_ram()
