"""The whole story: a pipeline and a budget become a plan, and the plan a configured pipeline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner import apply, host, probe
from planner.device import Device
from planner.plan import Plan
from planner.profiles import PipelineProfile
from planner.programs import Tell, silent
from planner.request import Request
from planner.study import opened
from planner.techniques import DEFAULT
from planner.techniques.base import Technique


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
    tell: Tell = silent,
    **wanted: Any,
) -> Plan:
    """The fastest combination of techniques that fits; nothing is changed.

    `model`: a shipped profile's name or hub id, a folder in hub layout, or a live pipeline.  `device`: one of `probe()`
    or `card("rtx-3070")`; by default the first card of this machine.  `components`: optional ones to load, such as
    `safety_checker`, or another profile that has what this one lacks, such as `sdxl-controlnet`.  `cache`: folder of
    recorded programs, by default the user's cache.  `tell` hears what takes seconds.  `wanted`: fields of `Request`.
    Raises BadRequest, TraceFailed or Infeasible.
    """
    asked = Request.from_json({**(request.to_json() if request else {}), **wanted})
    card = device or card_for(model)
    asked.budget.resolve(card)  # what makes no sense is said before anything is recorded
    study = opened(model, asked, components=components, techniques=techniques, cache=cache, tell=tell)
    try:
        return study.plan(card, host=_host_ram(asked, device))
    finally:
        study.keep()


def card_for(model: Any) -> Device:
    """The card of this machine that a run would use; what this process holds of it already is free to the plan."""
    torch = sys.modules.get("torch")
    if isinstance(model, (str, Path, PipelineProfile)) or torch is None or not torch.cuda.is_initialized():
        return probe.probe_one()
    card = probe.probe_one(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    held = torch.cuda.memory_reserved() + card.context
    return replace(card, free=min(card.free + held, card.total))


def _host_ram(request: Request, device: Device | None) -> int | None:
    """The host's budget: as asked; for a card of this machine what is available; for another machine's no limit."""
    if request.host_ram is not None or device is not None:
        return request.host_ram
    return host.available_host_ram()
