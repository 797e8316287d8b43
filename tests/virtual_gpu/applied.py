"""A plan on a full-size pipeline on the virtual GPU: applied, called, and taken back, by public functions alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import rig

from planner import profiles
from planner.cards import card
from planner.device import Device
from planner.plan import Plan
from planner.pricing import Priced, Pricer
from planner.programs import FromProfile, Programs
from planner.reasons import Order, plan_as_it_is
from planner.request import Request
from planner.techniques import DEFAULT

LEFT = 32_000_000
"""Bytes that stay on the card after all is undone: an autoencoder of videos keeps its last frames, a scheduler what
the denoiser said."""


def roomy(name: str) -> Device:
    """A card of that kind with memory enough for everything."""
    return replace(card(name), total=80 * rig.GIB, free=80 * rig.GIB)


def plan_of(model: str, pricer: Pricer, priced: Priced, request: Request, device: Device) -> Plan:
    """The plan of a candidate with the whole card for it."""
    order = Order(model=model, dtype=request.dtype or "", request=request, device=device, budget=device.total)
    return plan_as_it_is(priced, pricer, order)


def named(model: str, request: Request, device: Device, cache: Path) -> Plan:
    """The plan of what the request names, placement among it, and nothing else."""
    programs = Programs(FromProfile(profiles.find(model), None), request, cache)
    pricer = Pricer(programs, device, request, DEFAULT)
    (root,) = pricer.roots()
    settled = pricer.price(pricer.merged(root, pricer.offered("placement", root)))
    plan = plan_of(model, pricer, settled, request, device)
    programs.keep()
    return plan


def on_the_card(
    plan: dict[str, Any], call: dict[str, Any], dtype: str | None = None, computing: bool = False
) -> dict[str, Any]:
    """Sent to the virtual GPU: peaks of a call under a plan, and what is left of it when it is reverted.

    `computing`: every block, whatever a step cache says of the first one.
    """
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    import torch
    from inside import arguments, pipelines, smallvalues, sparse
    from inside.peaks import Peaks

    from planner import Plan
    from planner.snapshot import snapshot
    from planner.techniques import DEFAULT, expandable_segments, tracing
    from planner.techniques.offload import Offload
    from planner.techniques.placement import Placement

    def process() -> list[str]:
        return [str(torch.cuda.get_per_process_memory_fraction()), str(expandable_segments.is_on())]

    mode, folder = smallvalues.install(), tempfile.TemporaryDirectory()  # noqa: F841  (the mode lives as long as this)
    sparse.install()
    tracing._Traced.__call__ = smallvalues.unwatched(tracing._Traced.__call__)
    made = Plan.from_json(plan)
    pipe = pipelines.shipped(made.model, dtype)
    peaks = Peaks(pipe)
    before, outside = snapshot(pipe), process()
    own = [
        replace(each, folder=Path(folder.name)) if isinstance(each, (Placement, Offload)) else each for each in DEFAULT
    ]
    made.apply(pipe, techniques=own)
    changed = bool(before.difference(snapshot(pipe)))
    for part in (part for whole in pipe.components.values() if hasattr(whole, "modules") for part in whole.modules()):
        for hook in getattr(getattr(part, "_diffusers_hook", None), "hooks", {}).values():
            if computing and hasattr(hook, "threshold"):
                hook.threshold = -1.0
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    host = torch.cuda.host_memory_stats()["allocated_bytes.peak"]
    answer = {**peaks.whole, "phases": peaks.phases, "pinned": host, "changed": changed}
    made.revert(pipe)
    torch._C._cuda_clearCublasWorkspaces()
    left = [*before.difference(snapshot(pipe))[:3], *(fact for fact in process() if fact not in outside)]
    left += map(str, Path(folder.name).iterdir())
    return answer | {"left": left, "held": torch.cuda.memory_allocated()}


def ran(vgpu: rig.Server, plan: Plan, call: dict[str, Any], *, lag: int = 0, **further: Any) -> dict[str, Any]:
    """What was seen of a call under a plan that left nothing behind; `lag`: launches by which the card is late."""
    device = plan.device
    properties = rig.card(device.name) | {"vram": device.total, "context": device.context, "event_lag": lag}
    sent = {"plan": plan.to_json(), "call": call, **further}
    answer: dict[str, Any] = vgpu.script(on_the_card, sent, warm=plan.model, **properties)
    assert answer["changed"], "applied"
    assert answer["left"] == []
    assert answer["held"] < LEFT
    return answer


def allocated(answer: dict[str, Any]) -> dict[str, int]:
    """Peaks that were seen, by phase and over all."""
    return {"whole": answer["allocated"], **{name: peak["allocated"] for name, peak in answer["phases"].items()}}


def promised(plan: Plan) -> dict[str, int]:
    """Peaks that are promised, by phase and over all."""
    return {"whole": plan.promise.allocated, **{phase.name: phase.peak for phase in plan.promise.phases}}
