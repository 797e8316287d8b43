"""Step caches of diffusers: which of them a denoiser can have in its pipeline (0.42.1)."""

from __future__ import annotations

import inspect
import re
from typing import Any


def takes_first_block(pipe: Any, module: Any) -> bool:
    """Whether it has blocks for diffusers' first-block cache, and the pipeline says whose pass each one is."""
    if not hasattr(module, "enable_cache"):
        return False
    called = getattr(inspect.unwrap(type(pipe).__call__), "__code__", None)
    return called is not None and "cache_context" in called.co_names and _blocks(module) > 1


def takes_pyramid(pipe: Any, module: Any) -> bool:
    """Whether attention in it can be broadcast to later steps, and the pipeline says which step it is at."""
    if not hasattr(module, "enable_cache"):
        return False
    from diffusers.hooks import pyramid_attention_broadcast as pyramid

    kinds = (*pyramid._ATTENTION_CLASSES, pyramid.AttentionModuleMixin)
    places = (path for path, part in module.named_modules() if isinstance(part, kinds))
    spatial = pyramid._SPATIAL_TRANSFORMER_BLOCK_IDENTIFIERS
    found = any(re.search(name, path) for path in places for name in spatial)
    return found and hasattr(type(pipe), "current_timestep")


def remembers(module: Any) -> bool:
    """Whether a hook on it keeps something from one call to the next."""
    registry = vars(module).get("_diffusers_hook")
    return registry is not None and any(hook._is_stateful for hook in registry.hooks.values())


def _blocks(module: Any) -> int:
    import torch
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS

    named = ((name, part) for name, part in module.named_children() if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS)
    return sum(len(part) for _, part in named if isinstance(part, torch.nn.ModuleList))
