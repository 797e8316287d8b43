"""Components with unwritten weights: their pages are never touched, so twelve billion parameters take no memory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from itertools import chain
from typing import Any

import diffusers
import torch
import transformers


def find(library: str, kind: str) -> Any:
    """A class of diffusers, transformers or a pipeline package of diffusers.  Raises LookupError."""
    packages = (f"diffusers.pipelines.{name}" for name in (library, f"deprecated.{library}", "kolors"))
    homes = chain((diffusers, transformers), map(_module, packages))
    home = next((home for home in homes if hasattr(home, kind)), None)
    if home is None:
        raise LookupError(f"no class {kind} in {library}")
    return getattr(home, kind)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def build(kind: Any, config: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """The module as its `from_pretrained` would load it, on the host, with unwritten weights."""
    module = _on_meta(kind, dict(config), dtype)
    kept = _kept_in_single(module, dtype)
    cast = dict(module.named_parameters())
    if isinstance(module, diffusers.ModelMixin):  # what is in no file stays as the class makes it
        cast |= {name: buffer for name, buffer in module.named_buffers() if name in module.state_dict()}
    for name, tensor in cast.items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    integers = {name: buffer.shape for name, buffer in module.named_buffers() if not buffer.is_floating_point()}
    module = module.to_empty(device="cpu").eval()
    for name, shape in integers.items():
        module.get_buffer(name).copy_(torch.arange(shape.numel()).view(shape))
    for part in module.modules():
        _write_plain_tables(part)
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    return module


def _on_meta(kind: Any, config: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            if issubclass(kind, diffusers.ModelMixin):
                return kind.from_config(config)
            whole = kind.config_class.from_dict(config)
            nested = (getattr(whole, name, None) for name in getattr(whole, "sub_configs", {}))
            for part in (whole, *filter(None, nested)):
                part.dtype = dtype
            return kind(whole)
    finally:
        torch.set_default_dtype(default)


def _kept_in_single(module: torch.nn.Module, dtype: torch.dtype) -> set[str]:
    """Names of modules loaded in float32 whatever is asked: diffusers for either half, transformers for float16."""
    kept = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if isinstance(module, diffusers.ModelMixin) or dtype == torch.float16:
        kept |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    return kept


def _write_plain_tables(part: torch.nn.Module) -> None:
    """Tables kept as plain attributes were made on the meta device too, and `to_empty` does not know them."""

    def unwritten(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_meta

    def written(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if unwritten(value) else value

    for name, value in list(vars(part).items()):
        if unwritten(value):
            setattr(part, name, written(value))
        elif isinstance(value, (list, tuple)) and any(map(unwritten, value)):
            setattr(part, name, type(value)(map(written, value)))
