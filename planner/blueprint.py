"""Blueprint: a real pipeline built from a profile, its weights on the meta device and its tokenizers stand-ins."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import diffusers
import torch
import transformers
from torch.overrides import TorchFunctionMode

from planner import filed, fourbit, rounded
from planner.errors import BadRequest, PlannerError, TraceFailed
from planner.profiles import ComponentProfile, PipelineProfile
from planner.standin import SeeingStandIn, TokenizerStandIn


def build(profile: PipelineProfile, dtype: str | None) -> Any:
    """The pipeline of `profile`, loaded as `from_pretrained(torch_dtype=dtype)` would; nothing is allocated.

    Raises BadRequest for a class this version of diffusers or transformers does not have, TraceFailed for a
    configuration its class refuses.
    """
    kind = find("diffusers", profile.pipeline)
    parts: dict[str, Any] = dict(profile.settings)
    for part in profile.components:
        parts[part.name] = None if part.optional else _part(part, dtype)
    _acquaint(parts)
    taken = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in parts.items() if name in taken}  # a task's class may take fewer than its base
    for name, parameter in taken.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and name != "self"
        ):
            parts.setdefault(name, None)
    try:
        pipe = kind(**parts)
    except ImportError as error:
        raise BadRequest(_lacking(error)) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise TraceFailed(f"{profile.pipeline} cannot be built from {profile.name}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    for part in profile.loaded:
        if part.readied:
            method, given = part.readied
            getattr(getattr(pipe, part.name), method)(*given)
    return pipe


def _lacking(error: ImportError) -> str:
    """What diffusers says of a class that needs a library it did not find; its first sentence names both."""
    return f"{' '.join(str(error).split()).partition('. ')[0]}; install it and plan again."


def _acquaint(parts: dict[str, Any]) -> None:
    """Tell processors what files of their own say on the hub: how large pictures are, or what marks them in a text."""
    config: Any = getattr(parts.get("text_encoder"), "config", None)
    if isinstance(words := parts.get("processor"), TokenizerStandIn) and hasattr(config, "image_token_id"):
        parts["processor"] = SeeingStandIn(words.model_max_length, words.kind, config.to_dict())
    size = getattr(getattr(parts.get("image_encoder"), "config", None), "image_size", None)
    for name in ("feature_extractor", "image_processor"):
        if size is not None and parts.get(name) is not None:
            parts[name].size = parts[name].crop_size = {"height": size, "width": size}


def _part(part: ComponentProfile, dtype: str | None) -> Any:
    if part.role == "tokenizer":
        kind = getattr(transformers, part.kind, None)
        return TokenizerStandIn(part.max_length, kind, positions="ChatGLM" in part.kind)
    kind = find(part.library, part.kind)
    try:
        match part.role:
            case "processor":
                images_only = part.kind.endswith(("ImageProcessor", "FeatureExtractor"))
                return kind() if images_only else TokenizerStandIn(part.max_length, kind)
            case "scheduler" | "guider":
                return kind.from_config(deepcopy(dict(part.config)))
        return module_of(kind, part, getattr(torch, dtype or part.dtype))
    except PlannerError:
        raise
    except ImportError as error:
        raise BadRequest(_lacking(error)) from error
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise BadRequest(f"The configuration of {part.name} does not make a {part.kind}: {error}") from error


def module_of(kind: Any, part: ComponentProfile, dtype: torch.dtype) -> torch.nn.Module:
    """One component on the meta device, its tensors in the dtypes that loading would give them."""
    if part.file:
        return filed.module_of(kind, part, dtype).eval()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), _Unwritten():
            if issubclass(kind, diffusers.ModelMixin):
                module: torch.nn.Module = kind.from_config(deepcopy(dict(part.config)))
            else:
                module = kind(kind.config_class.from_dict(deepcopy(dict(part.config))))
    finally:
        torch.set_default_dtype(before)
    kept = _kept_in_single(module, dtype)
    for name, tensor in (*module.named_parameters(), *_saved_buffers(module)):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    tie = getattr(module, "tie_weights", None)
    if tie is not None:
        tie()
    if part.how:
        rounded.pack(module, part.packed, part.how)
    for path in () if part.how else part.packed:
        fourbit.pack(module.get_submodule(path), nested=part.nested, compute=getattr(torch, part.compute))
    return module.eval()


FILLS = frozenset({
    *(getattr(torch.nn.init, name) for name in ("kaiming_uniform_", "uniform_", "normal_", "constant_")),
    *(getattr(torch.Tensor, name) for name in ("uniform_", "normal_", "fill_", "zero_", "mul_", "clamp_", "erfinv_")),
})  # fmt: skip


class _Unwritten(TorchFunctionMode):
    """Leaves weights on meta as they are: there is nothing to write, and torch works out each fill in Python."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        if func in FILLS and isinstance(filled, torch.Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)


def _saved_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that loading casts: those that diffusers reads from files.  All others stay as the class makes them."""
    saved = module.state_dict().keys() if isinstance(module, diffusers.ModelMixin) else ()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def _kept_in_single(module: torch.nn.Module, dtype: torch.dtype) -> set[str]:
    """Names of modules that loading keeps in float32: diffusers for either half, transformers for float16 only."""
    strict = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if isinstance(module, diffusers.ModelMixin) or dtype == torch.float16:
        return strict | set(getattr(module, "_keep_in_fp32_modules", None) or ())
    return strict


def find(library: str, name: str) -> Any:
    """A class of diffusers, transformers or one of diffusers' pipeline packages; nothing else is imported."""
    packages = (f"diffusers.pipelines.{library}", f"diffusers.pipelines.deprecated.{library}")
    for home in (diffusers, transformers):
        if hasattr(home, name):
            return getattr(home, name)
    for package in packages:
        try:
            return getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError):  # noqa: PERF203  (two packages)
            continue
    raise BadRequest(
        f"{library}.{name} is not in diffusers {diffusers.__version__} or transformers {transformers.__version__}; "
        "upgrade them, or plan a pipeline they have."
    )
