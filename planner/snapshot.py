"""Snapshot: everything about a live pipeline that a technique may touch, as a value that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OBJECTS = ("processor", "forward", "_old_forward", "_hf_hook", "_call_impl", "_compiled_call_impl", "decode")
"""Attributes of modules that techniques replace; compared by identity."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
PLAIN = (bool, int, float, str, type(None))
PIPELINE = ("_all_hooks", "_offload_device", "_offload_gpu_id")
"""Attributes of a pipeline that offloading sets; the others change with every call."""
KERNELS = ("flash", "mem_efficient", "cudnn", "math")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State by name: where each tensor is and how it lies there, hooks, processors, flags, and the process's switches.

    Values of tensors are not compared.
    """

    facts: Mapping[str, object]

    def difference(self, later: Snapshot) -> tuple[str, ...]:
        """One line for each fact that is not the same later; empty when nothing changed."""
        names = sorted(self.facts.keys() | later.facts.keys())
        pairs = ((name, self.facts.get(name, "absent"), later.facts.get(name, "absent")) for name in names)
        return tuple(f"{name}: {before} became {after}" for name, before, after in pairs if before != after)


def snapshot(pipe: Any) -> Snapshot:
    """The state of `pipe` now."""
    import torch

    facts: dict[str, object] = dict(_pipeline(pipe))
    facts.update(_process())
    for component, module in pipe.components.items():
        facts[f"pipe.{component}"] = id(module)
        if isinstance(module, torch.nn.Module):
            for path, part in module.named_modules():
                facts.update(_module(f"{component}.{path}".rstrip("."), part))
    return Snapshot(facts)


def _pipeline(pipe: Any) -> Iterator[tuple[str, object]]:
    yield "pipe.__class__", id(type(pipe))
    for name in PIPELINE:
        if name in vars(pipe):
            value = vars(pipe)[name]
            yield f"pipe.{name}", tuple(map(id, value)) if isinstance(value, list) else str(value)


def _process() -> Iterator[tuple[str, object]]:
    import torch
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    yield "diffusers.attention_backend", str(Registry.get_active_backend()[0])
    yield "torch.cudnn.benchmark", torch.backends.cudnn.benchmark
    for kernel in KERNELS:
        yield f"torch.cuda.{kernel}_sdp", getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")()


def _module(name: str, module: Any) -> Iterator[tuple[str, object]]:
    for table in (module._parameters, module._buffers):
        for key, tensor in table.items():
            yield f"{name}.{key}", None if tensor is None else _tensor(tensor)
    for key, value in vars(module).items():
        if key in HOOKS:
            yield f"{name}.{key}", tuple(id(hook) for hook in value.values() if not _is_lazy(hook))
        elif key == "_diffusers_hook" and value.hooks:
            yield f"{name}.{key}", tuple(sorted(value.hooks))
        elif key in OBJECTS:
            yield f"{name}.{key}", id(value)
        elif isinstance(value, PLAIN) and not key.startswith("_"):
            yield f"{name}.{key}", value
    processor = getattr(module, "processor", None)
    if processor is not None:
        yield f"{name}.processor", (id(processor), type(processor).__name__, *_plain(processor))


def _is_lazy(hook: Any) -> bool:
    """Whether transformers put the hook there on the first call, to collect outputs; it stays for good."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def _tensor(tensor: Any) -> tuple[object, ...]:
    return id(tensor), str(tensor.device), str(tensor.dtype), tuple(tensor.shape), tensor.stride()


def _plain(owner: Any) -> Iterator[tuple[str, str]]:
    """Plain and enumerated attributes, such as the backend a processor asks for."""
    return ((name, str(value)) for name, value in sorted(vars(owner).items()) if not isinstance(value, dict))
