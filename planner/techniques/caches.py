"""Step caches by name: the figures each takes, and what diffusers is told (0.42.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from planner.cached import HALVES
from planner.errors import BadRequest

NEVER = -1.0
"""A threshold that no ghost falls below, whose differences are all zero: every block is computed."""
_SHARE, _STEPS = r"(?:0?\.[0-9]{1,4}|[0-9])", r"[1-9][0-9]?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One of diffusers' caches."""

    config: str
    """Its class."""
    example: str
    """Its figures, as one may write them."""
    figures: str
    """What they look like."""
    named: tuple[str, ...]
    """What diffusers calls them, in order."""
    lacks: str
    """Words that end "it …" where no denoiser of a pipeline can have it."""
    fixed: tuple[tuple[str, Any], ...] = ()
    """What else diffusers is told."""
    usual: str = ""
    """Its figures where no cache is named: diffusers' own; empty for one that has to be."""
    asks_step: bool = False
    """Whether it asks the pipeline for the timestep."""
    once: bool = False
    """Whether it counts on one call of the denoiser a step, and would mix the halves of guidance else."""


KINDS = {
    "first_block": Kind(
        config="FirstBlockCacheConfig", usual="0.05", example="0.08", figures=_SHARE, named=("threshold",),
        lacks="has no denoiser of 2 blocks or more that is told whose pass each one is",
    ),
    "pyramid": Kind(
        config="PyramidAttentionBroadcastConfig", usual="2", example="2/4/6", figures=rf"{_STEPS}(?:/{_STEPS}){{0,2}}",
        named=tuple(f"{kind}_attention_block_skip_range" for kind in ("spatial", "temporal", "cross")), asks_step=True,
        lacks="has no denoiser whose attention diffusers can broadcast, told by the pipeline which step it is at",
    ),
    "faster": Kind(
        config="FasterCacheConfig", usual="2/5", example="2/5", figures=rf"{_STEPS}(?:/{_STEPS})?", asks_step=True,
        named=("spatial_attention_block_skip_range", "unconditional_batch_skip_range"), once=True,
        lacks="has no denoiser whose self-attention FasterCache knows, told by the pipeline which step it is at",
    ),
    "taylorseer": Kind(
        config="TaylorSeerCacheConfig", usual="5", example="5", figures=rf"{_STEPS}(?:/[0-3])?",
        named=("cache_interval", "max_order"),
        lacks="has no denoiser with attention of the names that TaylorSeer looks for and told whose pass each one is; "
        "taylorseer_lite looks for blocks",
    ),
    "taylorseer_lite": Kind(
        config="TaylorSeerCacheConfig", example="5", figures=rf"{_STEPS}(?:/[0-3])?",
        named=("cache_interval", "max_order"), fixed=(("use_lite_mode", True),),
        lacks="has no denoiser of blocks with 1 projection behind them and told whose pass each one is",
    ),
    "mag": Kind(
        config="MagCacheConfig", usual="0.06", example="0.06", figures=_SHARE, named=("threshold",), once=True,
        lacks="has no ratios of how its blocks' results shrink from step to step, which MagCache takes from a "
        "calibration of each model; diffusers ships those of 1, FLUX.1",
    ),
}  # fmt: skip
ABSENT = {
    "sea": "SeaCache asks for the noise at each step, which 1 pipeline of diffusers tells, that of Cosmos 3",
    "text_kv": "TextKVCache is written for the blocks of 1 model, Nucleus-Image",
}
"""Caches of diffusers for no pipeline that is known here."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache with its figures."""

    name: str
    figures: tuple[str, ...]
    passes: int = 0
    """Of the denoiser in the call, for the cache whose ratios are laid over them."""

    @classmethod
    def of(cls, value: str) -> Cache:
        """What `first_block:0.08`, `pyramid:2/4/6` or `mag:0.06-28` stands for.  Raises BadRequest."""
        name, _, rest = value.partition(":")
        if name in ABSENT:
            raise BadRequest(f"step_cache={value} cannot be had: {ABSENT[name]}; choose one of {', '.join(KINDS)}.")
        figures, dash, passes = rest.partition("-")
        kind, counted = KINDS.get(name), name == "mag" and passes.isdecimal()
        if kind is None or not re.fullmatch(kind.figures, figures) or bool(dash) != counted:
            forms = [f"{name}:{kind.example}" for name, kind in KINDS.items()]
            raise BadRequest(
                f"{value!r} is none of {len(KINDS)} step caches; write {', '.join(forms[:-1])} or {forms[-1]}."
            )
        return cls(name, tuple(figures.split("/")), int(passes or 0))

    def __str__(self) -> str:
        return f"{self.name}:{'/'.join(self.figures)}" + (f"-{self.passes}" if self.passes else "")

    @property
    def kind(self) -> Kind:
        """Which it is."""
        return KINDS[self.name]

    @property
    def trait(self) -> str:
        """What a component needs for it."""
        return "faster_halves" if self.leaves_out_halves else self.name

    @property
    def leaves_out_halves(self) -> bool:
        """Whether it leaves out one half of guidance, and not attention alone."""
        return self.name == "faster" and len(self.figures) > 1

    def told(self, denoiser: str) -> dict[str, Any]:
        """Arguments of diffusers' configuration for a class of denoisers, but for those that are no plain values."""
        figures = (float(text) if "." in text else int(text) for text in self.figures)
        given = dict(zip(self.kind.named, figures, strict=False)) | dict(self.kind.fixed)
        if self.name == "faster":
            given |= (
                {"tensor_format": HALVES.get(denoiser, "")}
                if self.leaves_out_halves
                else {"is_guidance_distilled": True}
            )
        return given | ({"num_inference_steps": self.passes} if self.name == "mag" else {})

    def call(self, name: str, denoiser: str) -> str:
        """The plain diffusers code, for a component of that name and class."""
        given = [f"{key}={value!r}" for key, value in self.told(denoiser).items()]
        given += ["current_timestep_callback=lambda: pipe.current_timestep"] if self.kind.asks_step else []
        given += ["mag_ratios=FLUX_MAG_RATIOS"] if self.name == "mag" else []
        return f"pipe.{name}.enable_cache({self.kind.config}({', '.join(given)}))"

    @property
    def imports(self) -> tuple[str, ...]:
        """What that code needs."""
        ratios = ("from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS",) if self.name == "mag" else ()
        return (f"from diffusers import {self.kind.config}", *ratios)

    def made(self, pipe: Any, denoiser: str, *, ghost: bool) -> Any:
        """Diffusers' configuration, for this pipeline."""
        import diffusers

        given = self.told(denoiser)
        if self.kind.asks_step:
            given["current_timestep_callback"] = lambda: pipe.current_timestep
        if self.name == "mag":
            given["mag_ratios"] = diffusers.hooks.mag_cache.FLUX_MAG_RATIOS
        if ghost and self.name == "first_block":
            given["threshold"] = NEVER
        return getattr(diffusers, self.kind.config)(**given)
