"""Step caches: what the denoiser worked out at one step serves later ones, where diffusers thinks them alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed, BadRequest
from planner.program import CACHES, Component, Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.layerwise_casting import remember_hooks
from planner.techniques.live import in_reverse, is_ghost, modules, remember, undone_on_error
from planner.techniques.tracing import is_denoiser

DEFAULTS = ("first_block:0.05", "pyramid:2")
"""Where no value is named: diffusers' own threshold and range."""
RANGES = ("spatial", "temporal", "cross")
NEVER = -1.0
"""A threshold that no ghost falls below, whose differences are all zero: every block is computed."""
_THRESHOLD, _RANGES = r"0?\.[0-9]{1,4}|[0-9]", r"[1-9][0-9]?(?:/[1-9][0-9]?){0,2}"
_VALUE = re.compile(rf"first_block:(?P<threshold>{_THRESHOLD})|pyramid:(?P<ranges>{_RANGES})")


@dataclass(frozen=True, slots=True)
class Cache:
    """One of diffusers' caches with its figures."""

    threshold: float = 0.0
    """Of the first block's change, under which the other blocks are left out."""
    ranges: tuple[int, ...] = ()
    """Steps that one attention serves: spatial, temporal and cross attention; empty for a first-block cache."""

    @classmethod
    def of(cls, value: str) -> Cache:
        """What `first_block:0.08` or `pyramid:2/4/6` stands for.  Raises BadRequest."""
        match = _VALUE.fullmatch(value)
        if match is None:
            raise BadRequest(f"{value!r} is none of 2 step caches; write first_block:0.08 or pyramid:2/4/6.")
        if match["ranges"]:
            return cls(ranges=tuple(map(int, match["ranges"].split("/"))))
        return cls(threshold=float(match["threshold"]))

    @property
    def trait(self) -> str:
        """What a component needs for it."""
        return "pyramid" if self.ranges else "first_block"

    @property
    def arguments(self) -> dict[str, Any]:
        """Of diffusers' configuration."""
        named = zip(RANGES, self.ranges, strict=False)
        return {f"{kind}_attention_block_skip_range": steps for kind, steps in named} or {"threshold": self.threshold}

    def call(self, name: str) -> str:
        """The plain diffusers code."""
        given = [f"{key}={value}" for key, value in self.arguments.items()]
        given += ["current_timestep_callback=lambda: pipe.current_timestep"] if self.ranges else []
        return f"pipe.{name}.enable_cache({self.config}({', '.join(given)}))"

    @property
    def config(self) -> str:
        """Name of diffusers' class."""
        return "PyramidAttentionBroadcastConfig" if self.ranges else "FirstBlockCacheConfig"

    def made(self, pipe: Any, *, ghost: bool) -> Any:
        """That configuration, for this pipeline."""
        import diffusers

        config = getattr(diffusers, self.config)
        if self.ranges:
            return config(**self.arguments, current_timestep_callback=lambda: pipe.current_timestep)
        return config(threshold=NEVER if ghost else self.threshold)


@dataclass(frozen=True, slots=True)
class StepCache:
    """Lossy, and for those who name it.

    The pyramid leaves out what its ranges say, which is recorded and priced.  What a first block's change leaves out
    only values tell: recorded is a call in which every block is computed and the cache held, so no time is promised.
    """

    name: str = CACHES
    scope: Scope = "call"
    needs: str = "a denoiser that diffusers lets cache, in a pipeline that tells it the step"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        named = [value for name, _, value in (used.partition("=") for used in request.use) if name == self.name]
        values = dict.fromkeys(v for value in named for v in ([value] if value else DEFAULTS))
        if request.fidelity < Fidelity.LOSSY:
            return ()
        return tuple(
            Option(technique=self.name, value=value, fidelity=Fidelity.LOSSY, calls=_calls(cache, able))
            for value, cache in ((value, Cache.of(value)) for value in values)
            if (able := [part for part in program.components if _can(part, cache)])
        )

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
                _enable(part, cache.made(pipe, ghost=is_ghost(next(part.parameters()))))
        return undo


def _enable(module: Any, config: Any) -> None:
    try:
        module.enable_cache(config)
    except ValueError as error:  # a cache of others, or blocks that diffusers has no rules for
        raise ApplyFailed(
            f"1 of 2 caches was asked for, and {type(module).__name__} does not take it ({error}); name the other, or "
            "plan without step_cache."
        ) from error


def _can(component: Component, cache: Cache) -> bool:
    return {"denoiser", cache.trait} <= component.traits


def _calls(cache: Cache, able: list[Component]) -> tuple[str, ...]:
    return (f"from diffusers import {cache.config}", *(cache.call(component.name) for component in able))


def _remembered(module: Any) -> Undo:
    """Diffusers takes its hooks off, and leaves registries and `forward` on every module it went to."""
    left = in_reverse([remember(module, "_cache_config"), *(remember_hooks(part) for part in module.modules())])

    def undo() -> None:
        if module.is_cache_enabled:
            module.disable_cache()
        left()

    return undo
