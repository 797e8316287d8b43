"""Ghosts: a pipeline whose weights have shape, dtype and no bytes, and whose code is the real one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from planner import fourbit
from planner.double import doubled, is_hooked, kept_by_hooks
from planner.errors import BadRequest
from planner.holding import hold
from planner.packed import is_packed, is_wrapped, parts, rebuilt

LARGE = 4096
"""Elements from which a floating tensor becomes a ghost; below it is a table or a number that code may read back."""


@dataclass(frozen=True, slots=True)
class Ghost:
    """A pipeline of ghosts.  Running it allocates nothing and computes nothing."""

    pipe: Any
    mode: FakeTensorMode
    hooked: tuple[str, ...] = ()
    """Components that carried hooks of someone else; the ghost runs without them."""
    unread: bool = False
    """Whether the weights are still to be read: no pipeline is there yet."""

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Name and module of each component that is one."""
        for name, part in self.pipe.components.items():
            if isinstance(part, torch.nn.Module):
                yield name, part


def haunted(pipe: Any) -> Ghost:
    """The ghost that a pipeline on the meta device becomes, in place."""
    ghost = Ghost(pipe=pipe, mode=FakeTensorMode(allow_non_fake_inputs=True), unread=True)
    for _, module in ghost.modules():
        haunt(module, ghost.mode)
    return ghost


def ghost_of(pipe: Any) -> Ghost:
    """A ghost of a live pipeline.  No weight is copied; adapters, processors and hooks come along, offloading does not.

    Raises BadRequest where there can be none of it as it is, with what to do.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights: dict[int, Any] = {}
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for part in parts.values():
        for tensor in filter(is_large, (*part.parameters(), *part.buffers())):
            weights[id(tensor)] = _ghost_tensor(tensor, mode)
        kept: dict[int, torch.Tensor] = {}  # tied weights are kept once for each of their names
        for tensor in filter(torch.is_floating_point, kept_by_hooks(part)):
            weights[id(tensor)] = kept.setdefault(
                tensor.data_ptr(), torch.nn.Parameter(_ghost_tensor(tensor, mode), tensor.requires_grad)
            )
    hooked = tuple(name for name, part in parts.items() if is_hooked(part))
    ghost = Ghost(pipe=doubled(pipe, weights), mode=mode, hooked=hooked)
    for _, module in ghost.modules():
        haunt(module, mode)
        hold(module)
    return ghost


def haunt(module: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Turn every weight of `module` that is large or on meta into a ghost, and keep small integers real."""
    ghosts: dict[int, torch.Tensor] = {}
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and not is_ghost(tensor):
                    table[name] = _haunted(tensor, mode, ghosts)
        if getattr(part._parameters.get("weight"), "quant_state", None) is not None:
            fourbit.run_unpacked(part)
        for name, value in vars(part).items():
            if not name.startswith("_"):
                object.__setattr__(part, name, _haunt_plain(value, mode))


def is_large(tensor: torch.Tensor) -> bool:
    """Whether the planner replaces this tensor by a ghost."""
    return tensor.is_meta or (tensor.is_floating_point() and tensor.numel() >= LARGE) or _is_weight(tensor)


def is_ghost(tensor: Any) -> bool:
    """Whether a tensor has no bytes."""
    return all(isinstance(piece.tensor, FakeTensor) for piece in parts(tensor))


def _is_weight(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def _haunted(tensor: torch.Tensor, mode: FakeTensorMode, ghosts: dict[int, torch.Tensor]) -> torch.Tensor:
    if not is_large(tensor):
        return tensor
    if tensor.is_meta and not (
        tensor.is_floating_point() or tensor.is_complex() or is_packed(tensor)
    ):  # position ids and the like are counted from zero
        return torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
    if id(tensor) not in ghosts:
        ghosts[id(tensor)] = _ghost_tensor(tensor, mode)
    return ghosts[id(tensor)]


def _haunt_plain(value: Any, mode: FakeTensorMode) -> Any:
    """Tables kept as plain attributes, alone or in sequences, leave the meta device as well."""
    if isinstance(value, torch.Tensor) and value.is_meta:
        return _haunted(value, mode, {})
    if type(value) in (list, tuple) and any(isinstance(item, torch.Tensor) and item.is_meta for item in value):
        return type(value)(_haunt_plain(item, mode) for item in value)
    return value


def _ghost_tensor(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    if is_packed(tensor) and not is_wrapped(tensor):
        return _ghost_beside(tensor, mode)
    if is_wrapped(tensor):
        ghost = rebuilt(tensor, lambda inner: _ghost_tensor(inner, mode))
        return torch.nn.Parameter(ghost, requires_grad=False) if _is_weight(tensor) else ghost
    with mode:
        ghost = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, torch.nn.Parameter):  # products of weights that require gradients go another way (matmul)
        return torch.nn.Parameter(ghost, requires_grad=tensor.requires_grad)
    return ghost


def _ghost_beside(tensor: Any, mode: FakeTensorMode) -> torch.Tensor:
    """A packed weight whose scales hang on it; without its library's class, whose methods know nothing of ghosts.

    Raises BadRequest for 8-bit weights of bitsandbytes, which keep outliers that only values tell.
    """
    if getattr(tensor, "SCB", None) is not None:
        raise BadRequest(
            f"Weights of type {type(tensor).__name__} (bitsandbytes, 8 bits) take memory that depends on their values; "
            "load the model in nf4, or quantize it by torchao."
        )
    with mode:
        packed = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    ghost: Any = torch.nn.Parameter(packed, requires_grad=False)
    if hasattr(tensor, "quant_type") and not hasattr(tensor, "quant_state"):  # GGUF
        ghost.quant_type, ghost.quant_shape, ghost.as_tensor = tensor.quant_type, tensor.quant_shape, lambda: packed
        return cast(torch.Tensor, ghost)
    memo: dict[int, Any] = {
        id(piece.tensor): _ghost_tensor(piece.tensor, mode) for piece in parts(tensor) if piece.tensor is not tensor
    }
    ghost.quant_state = copy.deepcopy(tensor.quant_state, memo)
    return cast(torch.Tensor, ghost)
