"""The whole story: a pipeline and a budget become a plan, and the plan a configured pipeline."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner import apply, host, loading
from planner.device import Device
from planner.errors import BadRequest
from planner.limits import Kind
from planner.minimum import Smallest, smallest_of
from planner.plan import Plan
from planner.pricing import LASTING, words
from planner.probe import held as held_by
from planner.probe import probe_one
from planner.profiles import PipelineProfile
from planner.programs import Tell, silent
from planner.request import Budget, Request
from planner.study import Study, opened
from planner.surveys import LEAST, Anatomy, Frontier, Largest, Row, anatomy_of, comparison, frontier_of, largest_of
from planner.techniques import DEFAULT
from planner.techniques.base import Technique
from planner.techniques.live import beside
from planner.techniques.placement import check_free
from planner.units import format_bytes, parse_bytes


def auto_configure(
    pipe: Any, *, techniques: Sequence[Technique] = DEFAULT, device: Device | None = None, **wanted: Any
) -> Plan:
    """Plan for a live pipeline and configure it in place; `plan.revert(pipe)` takes it back.

    `wanted`: fields of `Request` by name, such as `budget="8GB"`, `height=2224`, `width=3840`.  Raises BadRequest,
    Infeasible or ApplyFailed; the pipeline is then untouched.
    """
    if apply.is_applied(pipe):
        apply.revert(pipe)
    apply.check_alone(pipe)
    check_free(pipe)
    made = plan(pipe, techniques=techniques, device=device, **wanted)
    apply.configure(pipe, made, techniques=techniques)
    return made


def load(
    model: str | Path,
    *,
    device: Device | None = None,
    techniques: Sequence[Technique] = DEFAULT,
    request: Request | None = None,
    components: Sequence[str] = (),
    variant: str = "",
    cache: Path | None = None,
    tell: Tell = silent,
    **wanted: Any,
) -> tuple[Any, Plan]:
    """Plan from the configuration, load the pipeline for that plan, and configure it: the pipeline and its plan.

    `model`: a folder in hub layout with safetensors weights, or a hub id whose files are on this machine; nothing is
    fetched and no code of theirs is run.  `variant`: `fp16` for files named so.  Other arguments as of `plan`.  Nothing
    is left on the card before the plan is applied.  What the plan quantizes is rounded as soon as it is read, and not
    kept as it was: that much of the plan cannot be reverted, which `tell` hears before.  Raises BadRequest,
    TraceFailed, Infeasible or ApplyFailed.
    """
    asked = Request.from_json({**(request.to_json() if request else {}), **wanted})
    card, room = device or probe_one(), asked.host_ram or host.available_host_ram()
    asked.budget.resolve(card)
    study = _opened(model, asked, components=components, techniques=techniques, cache=cache, tell=tell, here=True)
    try:
        made = study.plan(card, host=room)
        read, stays = loading.sizes(study.programs, made.options, techniques)
        mapped = loading.mapped(model, made, components=components, variant=variant)
        peak, worst = loading.host_peak(loading.totals(read), loading.totals(stays), mapped)
    finally:
        study.keep()
    loading.check_room(peak, worst, room)
    lasts = [words(option) for option in made.options if option.technique in LASTING]
    tell(f"loading {made.model}" + (f"; {', '.join(lasts)} cannot be undone" if lasts else ""))
    pipe = loading.fetched(model, made, techniques=techniques, components=components, variant=variant)
    apply.configure(pipe, made, techniques=loading.kept_nothing(techniques))
    packed = loading.card_peak(read, stays) if loading.packs(made) else 0
    share = f"{format_bytes(packed)} of the card for a layer" if packed else "nothing of the card"
    most = f"{format_bytes(peak)} of host RAM at most, when {worst} was read" if peak else "no host RAM of its own"
    note = f"Loading took {most}, and {share}."
    return pipe, replace(made, notes=(*made.notes, note))


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
    `safety_checker`, another profile that has what this one lacks, such as `sdxl-controlnet`, or a file that holds the
    weights of one, such as `transformer=flux1-dev-Q4_K_S.gguf`.  `cache`: folder of
    recorded programs, by default the user's cache.  `tell` hears what takes seconds.  `wanted`: fields of `Request`.
    Raises BadRequest, TraceFailed or Infeasible.
    """
    asked = Request.from_json({**(request.to_json() if request else {}), **wanted})
    card = device or card_for(model)
    asked.budget.resolve(card)  # what makes no sense is said before anything is recorded
    how = {"components": components, "techniques": techniques, "cache": cache, "tell": tell}
    study = _opened(model, asked, **how, here=device is None)
    try:
        return study.plan(card, host=_host_ram(asked, device))
    finally:
        study.keep()


def anatomy(model: Any, *, device: Device | None = None, request: Request | None = None, **wanted: Any) -> Anatomy:
    """The plan and where its memory is: at the peak of each phase by component, block and operation, and over time.

    Arguments as of `plan`.  Raises BadRequest, TraceFailed or Infeasible.
    """
    card = device or card_for(model)
    with _studied(model, request, wanted, here=device is None) as (study, _):
        return anatomy_of(study, card, host=_host_ram(study.request, device))


def frontier(
    model: Any,
    *,
    down_to: str | int = LEAST,
    device: Device | None = None,
    request: Request | None = None,
    **wanted: Any,
) -> Frontier:
    """What each budget buys: the least budgets and the seconds of the combinations no other beats in both.

    `down_to`: the least budget to look at, as `500MB` or bytes.  Other arguments as of `plan`; the request's budget and
    the card's memory are no limits.  Raises BadRequest or TraceFailed.
    """
    least, card = parse_bytes(down_to), device or card_for(model)
    with _studied(model, request, wanted, here=device is None) as (study, tell):
        return frontier_of(study, card, down_to=least, host=_host_ram(study.request, device), tell=tell)


def largest(
    model: Any, *, of: Kind = "size", device: Device | None = None, request: Request | None = None, **wanted: Any
) -> Largest:
    """The largest `size` of the request's shape, the largest `batch` of one call, or the most `frames` that fit.

    Arguments as of `plan`.  Raises BadRequest, TraceFailed, or Infeasible where nothing fits.
    """
    card = device or card_for(model)
    with _studied(model, request, wanted, here=device is None) as (study, tell):
        return largest_of(study, of, card, host=_host_ram(study.request, device), tell=tell)


def smallest(model: Any, *, device: Device | None = None, request: Request | None = None, **wanted: Any) -> Smallest:
    """The least budget that fits, to 2 %, and its plan; the request's budget and the card's memory are no limits.

    Arguments as of `plan`.  Raises BadRequest, TraceFailed, or Infeasible where host memory is too small for any plan.
    """
    card = device or card_for(model)
    with _studied(model, request, wanted, here=device is None) as (study, tell):
        return smallest_of(study, card, host=_host_ram(study.request, device), tell=tell)


def compare(
    model: Any,
    devices: Sequence[Device],
    *,
    budgets: Sequence[str | int] = ("auto",),
    prices: Mapping[str, float] | None = None,
    request: Request | None = None,
    **wanted: Any,
) -> tuple[Row, ...]:
    """One model on each card under each budget.

    `prices`: per hour, by `Device.name`.  Other arguments as of `plan`.  Raises BadRequest or TraceFailed.
    """
    hourly = prices or {}
    cells = [(card, Budget.parse(text).resolve(card), hourly.get(card.name)) for card in devices for text in budgets]
    with _studied(model, request, wanted, here=False) as (study, tell):
        return comparison(study, cells, host=study.request.host_ram, tell=tell)


def _opened(model: Any, request: Request, **how: Any) -> Study:
    """The study of what bears no plan: what a plan did to a pipeline would be planned with."""
    if apply.is_applied(model):
        raise BadRequest(
            f"A plan is applied to this {type(model).__name__}; call plan.revert(pipe) first, or "
            "planner.auto_configure(pipe), which does."
        )
    if not isinstance(model, (str, Path, PipelineProfile)):
        apply.check_alone(model)
    return opened(model, request, **how)


@contextmanager
def _studied(
    model: Any, request: Request | None, wanted: dict[str, Any], *, here: bool
) -> Iterator[tuple[Study, Tell]]:
    """A study that is kept in the end.  `wanted`: arguments of `opened`, the rest are fields of the request."""
    how = {name: wanted.pop(name) for name in ("components", "techniques", "cache", "tell") if name in wanted}
    asked = Request.from_json({**(request.to_json() if request else {}), **wanted})
    study = _opened(model, asked, **how, here=here)
    try:
        yield study, how.get("tell", silent)
    finally:
        study.keep()


def card_for(model: Any) -> Device:
    """The card of this machine that a run would use.

    What this process holds of it is free to the plan, but for tensors that are not of the pipeline.
    """
    torch = sys.modules.get("torch")
    if isinstance(model, (str, Path, PipelineProfile)) or torch is None or not torch.cuda.is_initialized():
        return probe_one()
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    card, reserved, held = probe_one(uuid), torch.cuda.memory_reserved(), held_by(uuid)
    context = max(card.context, held - reserved) if held else card.context  # kernels still to be loaded make it grow
    ours = (held or reserved + context) - beside(model)
    return replace(card, context=context, free=min(card.free + ours, card.total))


def _host_ram(request: Request, device: Device | None) -> int | None:
    """The host's budget: as asked; for a card of this machine what is available; for another machine's no limit."""
    if request.host_ram is not None or device is not None:
        return request.host_ram
    return host.available_host_ram()
