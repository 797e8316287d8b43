"""When two calls do the same: fingerprints of modules, signatures of arguments, and outputs made anew."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from planner.cached import remembers
from planner.packed import is_packed, parts
from planner.strides import hand_on, is_handed_on

SCALARS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
IGNORED = {"layer_idx", "forward", "_apply", "extra_repr", "quant_state"}
"""Attributes that do not change what a module does: `layer_idx` numbers the layers of a transformers model for caches
of past keys, which diffusion pipelines do not keep; two are the tracer's own, `extra_repr` is for printing, and
`quant_state` hangs on the weight too."""


class Opaque(Exception):
    """A value the tracer cannot compare or make anew."""


def fingerprint(module: torch.nn.Module, known: dict[int, Hashable], numbers: dict[Hashable, Hashable]) -> Hashable:
    """Equal for modules that do the same to tensors of the same shapes.

    `known` remembers earlier answers by id, until modules change.  `numbers` stands for large tuples, so that parents
    compare in one step; it is never emptied, for a number that was given twice would make two modules equal.
    """
    if id(module) not in known:
        weights = tuple(
            (name, None if t is None else _weight(t))
            for name, t in (*module._parameters.items(), *module._buffers.items())
        )
        plain = tuple((name, _trait(value)) for name, value in vars(module).items() if _tells(name))
        children = tuple(
            (name, child and fingerprint(child, known, numbers)) for name, child in module._modules.items()
        )
        if any(child is not None and remembers(child) for child in module._modules.values()):
            raise Opaque("a module in which a hook remembers earlier calls")
        known[id(module)] = numbers.setdefault((type(module), weights, plain, children), ("module", len(numbers)))
    return known[id(module)]


def _tells(name: str) -> bool:
    return name not in IGNORED and not name.startswith(
        (
            "_parameters",
            "_buffers",
            "_modules",
            "_non_persistent",
            "_backward",
            "_forward",
            "_state_dict",
            "_load_state",
            "_is_full",
        )
    )


def _shape(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    return (tuple(tensor.shape), tensor.stride(), tensor.dtype, isinstance(tensor, FakeTensor), is_handed_on(tensor))


def _weight(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    """A packed weight is what it is made of; the numbers beside it, such as block sizes, follow from their shapes."""
    if not is_packed(tensor):
        return (*_shape(tensor), tensor.requires_grad)
    return (type(tensor), _shape(tensor), *(_shape(piece.tensor) for piece in parts(tensor)))


def _trait(value: Any) -> Hashable:
    if isinstance(value, SCALARS):
        return (type(value).__name__, value)
    if isinstance(value, torch.Tensor):
        return _shape(value)
    if isinstance(value, (tuple, list)):
        return tuple(_trait(item) for item in value)
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return (value.__module__, value.__qualname__)
    if hasattr(value, "__dict__") and "rocessor" in type(value).__name__:
        return (type(value), tuple((k, _trait(v)) for k, v in vars(value).items()))
    return _hooks(value) if hasattr(value, "hooks") and hasattr(value, "get_hook") else ("object", id(value))


def _hooks(registry: Any) -> Hashable:
    """The hooks of diffusers on a module, each of which is an object of its own."""
    return tuple((name, type(hook), _plain(hook)) for name, hook in registry.hooks.items())


def _plain(owner: object) -> Hashable:
    return tuple((name, value) for name, value in vars(owner).items() if isinstance(value, SCALARS))


def signature(value: Any) -> Hashable:
    """Equal for arguments that differ in nothing but the numbers inside tensors.  Raises Opaque."""
    if isinstance(value, torch.Tensor):
        return (_shape(value), value.storage_offset() if isinstance(value, FakeTensor) else 0)
    if isinstance(value, SCALARS):
        return (type(value), value)
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *map(signature, value))
    if isinstance(value, dict):
        return ("dict", *((key, signature(item)) for key, item in value.items()))
    if isinstance(value, (types.FunctionType, type)):
        return (value.__module__, value.__qualname__)
    raise Opaque(type(value).__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    """One tensor among outputs: where its storage comes from and how it lies in it."""

    source: int
    """Survivor's local number; -1 - n for the n-th tensor among the arguments."""
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    nbytes: int
    real: torch.Tensor | None = None
    handed_on: bool = False


def shape_of(tensor: torch.Tensor, source: int) -> Shape:
    """How `tensor` lies in its storage."""
    real = None
    if not isinstance(tensor, FakeTensor):
        with torch.utils._python_dispatch._disable_current_modes():  # the copy is the tracer's, not the pipeline's
            real = tensor.detach().clone()
    return Shape(
        source=source, size=tuple(tensor.shape), stride=tensor.stride(), offset=int(tensor.storage_offset()),
        dtype=tensor.dtype, nbytes=tensor.untyped_storage().nbytes(), real=real,
        handed_on=is_handed_on(tensor),
    )  # fmt: skip


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same tree with each tensor (or Shape) changed.  Raises Opaque for containers it does not know."""
    if isinstance(value, (torch.Tensor, Shape)):
        return change(value)
    if isinstance(value, SCALARS):
        return value
    if type(value) in (tuple, list):
        return type(value)(mapped(item, change) for item in value)
    if type(value) is dict:
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, dict) and hasattr(value, "to_tuple"):  # output classes of diffusers and transformers
        return _Output(type(value), tuple((key, mapped(item, change)) for key, item in value.items()))
    if isinstance(value, _Output):
        return value.kind(**{key: mapped(item, change) for key, item in value.items})
    raise Opaque(type(value).__name__)


@dataclass(frozen=True, slots=True)
class _Output:
    kind: type
    items: tuple[tuple[str, Any], ...]


def made_anew(shape: Shape, bases: dict[int, torch.Tensor], mode: FakeTensorMode) -> torch.Tensor:
    """A ghost (or a real copy) that lies like `shape` in a storage shared with its siblings through `bases`."""
    if shape.real is not None:
        copy = shape.real.clone()
        bases.setdefault(shape.source, copy)
        return copy
    with mode:
        if shape.source not in bases:
            whole = shape.nbytes == prod(shape.size) * shape.dtype.itemsize and shape.offset == 0
            if whole:
                bases[shape.source] = torch.empty_strided(shape.size, shape.stride, dtype=shape.dtype)
                hand_on(bases[shape.source], shape.handed_on)
                return bases[shape.source]
            bases[shape.source] = torch.empty(shape.nbytes // shape.dtype.itemsize, dtype=shape.dtype)
        made = bases[shape.source].as_strided(shape.size, shape.stride, shape.offset)
        hand_on(made, shape.handed_on)
        return made
