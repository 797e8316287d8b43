"""Quantizable: the linear layers that diffusers and transformers have bitsandbytes pack (0.42.1; 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from planner.packed import is_packed


def layers_of(module: Any) -> Iterator[tuple[str, Any]]:
    """Path and layer, of a component as it is read; nothing of a component of other libraries."""
    import diffusers
    import torch
    import transformers

    if isinstance(module, diffusers.ModelMixin):
        kept, skips, exact = kept_in_single(module), _skipped_by_diffusers, False
    elif isinstance(module, transformers.PreTrainedModel):
        kept, skips, exact = _kept_by_transformers(module), _skipped_by_transformers, True
    else:
        return
    for path, layer in module.named_modules():
        mine = type(layer) is torch.nn.Linear if exact else isinstance(layer, torch.nn.Linear)
        if mine and not skips(path, kept) and not is_packed(layer.weight):
            yield path, layer


def kept_in_single(module: Any) -> list[str]:
    """Names of modules that stay in float32, and are not packed either."""
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    return [kept] if isinstance(kept, str) else list(kept)


def _skipped_by_diffusers(path: str, kept: Sequence[str]) -> bool:
    """As `_replace_with_bnb_linear` has it."""
    return path.rpartition(".")[2] in kept or any(f"{key}." in path or key == path for key in kept)


def _kept_by_transformers(module: Any) -> list[str]:
    """Besides those in float32: what is tied, the last module, and what makes logits."""
    from transformers.quantizers.base import HfQuantizer

    found: list[str] = HfQuantizer.get_modules_to_not_convert(module, None, kept_in_single(module))
    return found


def _skipped_by_transformers(path: str, kept: Sequence[str]) -> bool:
    """As `should_convert_module` has it: from the start to a border, or as the end."""
    return any(re.match(rf"(?:{key})(?:(?<=\.)|(?=\.|$))", path) or path.endswith(key) for key in kept)
