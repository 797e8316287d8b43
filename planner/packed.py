"""Packed: weights that are several tensors in one, as quantizing libraries keep them.

torchao says what a weight is made of; bitsandbytes hangs scales and tables on a parameter of packed numbers; diffusers'
GGUF weights are one tensor of blocks that hold their own scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

STATE = ("code", "absmax", "offset")
"""What bitsandbytes keeps of 4-bit weights beside them, in the order in which `Params4bit.to` moves it (0.50.2)."""
NESTED = ("absmax", "code")
"""The same of scales that are quantized themselves."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the plain tensors a weight is made of, and where it hangs; a plain weight is its own and hangs nowhere."""

    tensor: Any
    owner: Any = None
    name: str = ""


def parts(tensor: Any) -> Iterator[Part]:
    """The plain tensors whose bytes a parameter or buffer takes, in the order in which they move."""
    if (wrapped := _wrapped(tensor)) is not None:
        for name in wrapped:
            yield from (Part(p.tensor, p.owner or tensor, p.name or name) for p in parts(getattr(tensor, name)))
        return
    for owner, names in _beside(tensor):
        yield from (Part(found, owner, name) for name in names if (found := getattr(owner, name, None)) is not None)
    yield Part(tensor)


def is_packed(tensor: Any) -> bool:
    """Whether a weight is kept in another form than the numbers it stands for."""
    return _wrapped(tensor) is not None or any(hasattr(tensor, mark) for mark in ("quant_state", "SCB", "quant_type"))


def packs(module: Any) -> bool:
    """Whether any parameter of a module is packed."""
    return any(is_packed(parameter) for parameter in module.parameters())


def clings(module: Any) -> bool:
    """Whether a module has weights of bitsandbytes' 8 bits, which `Module.to` tears from their scales (0.50)."""
    return any(hasattr(parameter, "SCB") for parameter in module.parameters())


def rebuilt(tensor: Any, change: Callable[[Any], Any]) -> Any:
    """A weight that is wrapped, of other tensors."""
    names, context = tensor.__tensor_flatten__()
    made = {name: change(getattr(tensor, name)) for name in names}
    return type(tensor).__tensor_unflatten__(made, context, tensor.size(), tensor.stride())


def is_wrapped(tensor: Any) -> bool:
    """Whether a weight only stands for others, as torchao's do."""
    return _wrapped(tensor) is not None


def _wrapped(tensor: Any) -> list[str] | None:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return None if flatten is None else flatten()[0]


def _beside(tensor: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        yield state, STATE
        if getattr(state, "state2", None) is not None:
            yield state.state2, NESTED
    if getattr(tensor, "SCB", None) is not None:
        yield tensor, ("SCB",)
