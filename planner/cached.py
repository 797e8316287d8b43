"""Step caches of diffusers: which of them a denoiser can have in its pipeline (0.42.1)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

HALVES = {
    "AllegroTransformer3DModel": "BCFHW",
    "CogVideoXTransformer3DModel": "BFCHW",
    "LatteTransformer3DModel": "BCFHW",
    "MochiTransformer3DModel": "BCFHW",
}
"""Denoisers that are handed both halves of guidance in one batch and by keyword, and how their results lie: what
FasterCache must know to leave out a half.  Those of LTX, which lie as (B, S, C), it does not take."""
RATIOS = ("FluxPipeline", "FluxTransformer2DModel")
"""The pipeline and denoiser whose ratios diffusers ships for MagCache; any other's have to be calibrated."""
ONCE = "once_a_step"
"""The trait of a denoiser that is called so, for both halves of guidance or for one."""


def caches_of(pipe: Any, module: Any) -> tuple[tuple[str, bool], ...]:
    """Each cache by its trait, and whether `module` can have it in this pipeline."""
    able = hasattr(module, "enable_cache")
    told_pass, told_step = able and _tells_pass(pipe), able and hasattr(type(pipe), "current_timestep")
    faster = told_step and _takes_faster(module)
    return (
        ("first_block", told_pass and _blocks(module) > 1),
        ("pyramid", told_step and _takes_pyramid(module)),
        ("faster", faster),
        ("faster_halves", faster and type(module).__name__ in HALVES),
        ("taylorseer", told_pass and _takes_taylorseer(module)),
        ("taylorseer_lite", told_pass and _takes_lite(module)),
        ("mag", able and (type(pipe).__name__, type(module).__name__) == RATIOS),
    )


def remembers(module: Any) -> bool:
    """Whether a hook on it keeps something from one call to the next."""
    registry = vars(module).get("_diffusers_hook")
    return registry is not None and any(hook._is_stateful for hook in registry.hooks.values())


def _tells_pass(pipe: Any) -> bool:
    """Whether the pipeline says whose pass each one is, one half of guidance or the other."""
    called = getattr(inspect.unwrap(type(pipe).__call__), "__code__", None)
    return called is not None and "cache_context" in called.co_names


def _takes_pyramid(module: Any) -> bool:
    from diffusers.hooks import pyramid_attention_broadcast as pyramid

    kinds = (*pyramid._ATTENTION_CLASSES, pyramid.AttentionModuleMixin)
    places = (path for path, part in module.named_modules() if isinstance(part, kinds))
    return any(_found(pyramid._SPATIAL_TRANSFORMER_BLOCK_IDENTIFIERS, path) for path in places)


def _takes_faster(module: Any) -> bool:
    from diffusers.hooks import faster_cache as faster

    attentions = ((path, part) for path, part in module.named_modules() if isinstance(part, faster._ATTENTION_CLASSES))
    places = (path for path, part in attentions if not getattr(part, "is_cross_attention", False))
    return any(_found(faster._SPATIAL_ATTENTION_BLOCK_IDENTIFIERS, path) for path in places)


def _takes_taylorseer(module: Any) -> bool:
    from diffusers.hooks.taylorseer_cache import _TRANSFORMER_BLOCK_IDENTIFIERS as NAMES

    return any(re.fullmatch(name, path) for path, _ in module.named_modules() for name in NAMES)


def _takes_lite(module: Any) -> bool:
    """Whether all that comes of its blocks goes through one projection, which is what is continued."""
    from diffusers.hooks.taylorseer_cache import _BLOCK_IDENTIFIERS as NAMES

    ends = [name for name, _ in module.named_children() if name.endswith("proj_out")]
    return ends == ["proj_out"] and any(
        re.fullmatch(name, path) for path, _ in module.named_modules() for name in NAMES
    )


def _found(names: Iterable[str], path: str) -> bool:
    return any(re.search(name, path) for name in names)


def _blocks(module: Any) -> int:
    import torch
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS

    named = ((name, part) for name, part in module.named_children() if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS)
    return sum(len(part) for _, part in named if isinstance(part, torch.nn.ModuleList))
