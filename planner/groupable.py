"""Groupable: the modules that diffusers' group offload takes together when it goes by blocks, or alone (0.42.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.packed import packs
from planner.program import Stack, Unit
from planner.streamable import held


def moves(part: Any) -> bool:
    """Whether diffusers' group offload moves this module."""
    registry = getattr(part, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None


def is_leaf(part: Any) -> bool:
    """Whether it is one of the layers by which diffusers' group offload goes when it goes by leaves."""
    from diffusers.hooks._common import _GO_LC_SUPPORTED_PYTORCH_LAYERS

    return isinstance(part, _GO_LC_SUPPORTED_PYTORCH_LAYERS)


def stacks_of(root: Any) -> tuple[Stack, ...]:
    """The component itself, and the modules in it that its class names as made of blocks; the inner ones first.

    Empty where the class says that it cannot be offloaded by groups, and where weights are packed.
    """
    if not getattr(root, "_supports_group_offloading", True) or packs(root):
        return ()
    places = {id(tensor): place for place, tensor in enumerate(held(root))}
    named = frozenset(getattr(root, "_group_offload_block_modules", None) or ())
    return tuple(_within(root, "", named, places))


def _within(module: Any, path: str, named: frozenset[str], places: dict[int, int]) -> Iterator[Stack]:
    lists: list[tuple[Unit, ...]] = []
    rest, tables, lasting = list(_places(module, places, recurse=False)), list[int](), list[int]()
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if name in named:
            yield from _within(child, inner, named, places)
        elif _is_list(child):
            blocks = ((f"{inner}.{label}", block) for label, block in child.named_children())
            lists.append(tuple(Unit((where,), tuple(_places(block, places))) for where, block in blocks))
            lasting += _tables(child, places)
        else:
            rest += _places(child, places)
            tables += _tables(child, places)
    yield Stack(path, tuple(lists), *(tuple(dict.fromkeys(found)) for found in (rest, tables, lasting)))


def _tables(module: Any, places: dict[int, int]) -> Iterator[int]:
    """Of its buffers."""
    return (places[id(buffer)] for buffer in module.buffers() if id(buffer) in places)


def _places(module: Any, places: dict[int, int], *, recurse: bool = True) -> Iterator[int]:
    """Of its parameters and buffers, in the order in which they travel."""
    tensors = (*module.parameters(recurse), *module.buffers(recurse))
    return (places[id(tensor)] for tensor in tensors if id(tensor) in places)


def _is_list(module: Any) -> bool:
    import torch

    return isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential))
