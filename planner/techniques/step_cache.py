"""Step caches: what the denoiser worked out at one step serves later ones, where diffusers thinks them alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from planner.arguments import split
from planner.cached import HALVES, ONCE
from planner.device import Device
from planner.errors import ApplyFailed
from planner.events import Call, Enter
from planner.program import CACHES, Component, Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.caches import KINDS, Cache
from planner.techniques.layerwise_casting import remember_hooks
from planner.techniques.live import in_reverse, is_ghost, modules, remember, undone_on_error
from planner.techniques.tracing import is_denoiser

DEFAULTS = tuple(f"{name}:{kind.usual}" for name, kind in KINDS.items() if kind.usual)
"""Where no value is named: diffusers' own figures."""
HALF_ONLY = "faster:2, which leaves out attention alone"


@dataclass(frozen=True, slots=True)
class StepCache:
    """Lossy, and for those who name it.

    What is left out at which step follows from figures, ratios and timesteps alone, so it is recorded and priced; but
    what a first block's change leaves out only values tell: recorded is a call in which every block is computed and
    the cache held, so no time is promised.
    """

    name: str = CACHES
    scope: Scope = "call"
    needs: str = "a denoiser that diffusers lets cache, which no UNet is, in a pipeline that tells it the step"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        named = [value for name, _, value in (used.partition("=") for used in request.use) if name == self.name]
        values = dict.fromkeys(v for value in named for v in ([value] if value else DEFAULTS))
        if request.fidelity < Fidelity.LOSSY:
            return ()
        made = (_offer(self.name, program, request, Cache.of(value)) for value in values)
        return tuple(option for option in made if option)

    def lacks(self, value: str, program: Program, device: Device) -> str:  # noqa: ARG002
        """Why a cache that was named cannot be had."""
        denoisers = [component for component in program.components if "denoiser" in component.traits]
        if not value or not any(KINDS.keys() & component.traits for component in denoisers):
            return ""
        cache = Cache.of(value)
        if cache.leaves_out_halves and not any(cache.trait in component.traits for component in denoisers):
            return f"has none of the {len(HALVES)} denoisers that get both halves of guidance at once; name {HALF_ONLY}"
        if not any(cache.trait in component.traits for component in denoisers):
            return cache.kind.lacks
        if cache.kind.once and not any(ONCE in component.traits for component in denoisers):
            calls = sum(_passes(program, component.name) for component in denoisers)
            return f"calls its denoiser {calls} times, which is not once a step, and {cache.name} would mix the halves"
        return f"has no guidance to leave a half of out; name {HALF_ONLY}" if cache.leaves_out_halves else ""

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:
        cache = Cache.of(str(option.value))
        able = [part for name, part in modules(pipe).items() if is_denoiser(name) and hasattr(part, "enable_cache")]
        undo = in_reverse([_remembered(part) for part in able])
        with undone_on_error(undo):
            for part in able:
                ghost = is_ghost(next(part.parameters()))
                _enable(part, cache.made(pipe, type(part).__name__, ghost=ghost))
        return undo


def _enable(module: Any, config: Any) -> None:
    try:
        module.enable_cache(config)
    except ValueError as error:  # a cache of others, or blocks that diffusers has no rules for
        raise ApplyFailed(
            f"1 of {len(KINDS)} caches was asked for, and {type(module).__name__} does not take it ({error}); name "
            "another, or plan without step_cache."
        ) from error


def _offer(name: str, program: Program, request: Request, cache: Cache) -> Option | None:
    able = [component for component in program.components if _can(component, cache, program, request)]
    if not able:
        return None
    if cache.name == "mag":
        cache = replace(cache, passes=_passes(program, able[0].name))
    calls = (*cache.imports, *(cache.call(component.name, component.kind) for component in able))
    return Option(technique=name, value=str(cache), fidelity=Fidelity.LOSSY, calls=calls)


def _can(component: Component, cache: Cache, program: Program, request: Request) -> bool:
    if not {"denoiser", cache.trait} <= component.traits or (cache.kind.once and ONCE not in component.traits):
        return False
    prompts, images = split(request.prompts, request.images, program.variant.splits)
    return not cache.leaves_out_halves or component.rows == 2 * prompts * images


def _passes(program: Program, name: str) -> int:
    """How often a component is called."""
    events = program.recordings[program.course].events
    return sum(isinstance(event, (Call, Enter)) and event.module == name for event in events)


def _remembered(module: Any) -> Undo:
    """Diffusers takes its hooks off, and leaves registries and `forward` on every module it went to."""
    left = in_reverse([remember(module, "_cache_config"), *(remember_hooks(part) for part in module.modules())])

    def undo() -> None:
        if module.is_cache_enabled:
            module.disable_cache()
        left()

    return undo
