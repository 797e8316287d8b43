"""Streamable: the modules by which a component's weights can travel to the card one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

FINEST = 12
"""A module is taken as a whole where it holds at most this part of its component: half a FLUX block is not worth a
hook of its own, while half an SDXL UNet sits in one up-block."""


def held(module: Any) -> Iterator[Any]:
    """Parameters and buffers with bytes, tied ones once, in the order in which `Module.to` moves them."""
    seen: set[int] = set()
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and tensor.numel() and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def units_of(root: Any) -> tuple[tuple[str, Any, tuple[int, ...]], ...]:
    """Path and module of each unit, and the places of its parameters in `held(root)`.

    Buffers and parameters that two modules share belong to no unit, for they must be there whenever one of them runs.
    """
    places = {id(tensor): place for place, tensor in enumerate(held(root))}
    owners = Counter(id(p) for part in root.modules() for p in part._parameters.values() if p is not None)
    total = sum(_bytes(p) for p in root.parameters())

    def within(part: Any, path: str) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
        own = [p for p in part.parameters() if id(p) in places]
        small = sum(map(_bytes, own)) * FINEST <= total
        children = [(name, child) for name, child in part.named_children() if any(True for _ in child.parameters())]
        if path and (small or not children) and not _is_list(part):
            mine = tuple(places[id(p)] for p in own if owners[id(p)] == 1)
            if mine:
                yield path, part, mine
            return
        for name, child in children:
            yield from within(child, f"{path}.{name}" if path else name)

    return tuple(within(root, ""))


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _is_list(module: Any) -> bool:
    """Whether a module only holds others and is never called."""
    return type(module).__name__ in ("ModuleList", "ModuleDict")
