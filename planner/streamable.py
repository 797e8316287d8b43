"""Streamable: the modules by which a component's weights can travel to the card one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from planner.packed import is_packed, is_wrapped, parts

FINEST = 12
"""A module is taken as a whole where it holds at most this part of its component: half a FLUX block is not worth a
hook of its own, while half an SDXL UNet sits in one up-block."""


def held(module: Any) -> Iterator[Any]:
    """Parameters and buffers with bytes, tied ones once, in the order in which `Module.to` moves them.

    Of packed weights come the tensors they are made of.
    """
    seen: set[int] = set()
    for part in _inside_out(module, set()):
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            for piece in parts(tensor) if tensor is not None and tensor.numel() else ():
                if id(piece.tensor) not in seen:
                    seen.add(id(piece.tensor))
                    yield piece.tensor


def _inside_out(module: Any, seen: set[int]) -> Iterator[Any]:
    """Modules as `_apply` visits them: what a module holds comes before itself."""
    if id(module) in seen:
        return
    seen.add(id(module))
    for child in module.children():
        yield from _inside_out(child, seen)
    yield module


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamable:
    """A module that can travel by itself, with those that hold the very same weights, such as tied embeddings."""

    paths: tuple[str, ...]
    modules: tuple[Any, ...]
    places: tuple[int, ...]
    """Of its parameters in `held(root)`."""


def units_of(root: Any) -> tuple[Streamable, ...]:
    """What a component can be streamed by, in the order in which it holds it.

    Buffers, and parameters that are tied between modules of different kinds, belong to no unit: they must be there
    whenever one of these runs.  So does nothing of a component with weights whose parts cannot be swapped one by one.
    """
    if any(is_packed(parameter) and not is_wrapped(parameter) for parameter in root.parameters()):
        return ()
    places = {id(tensor): place for place, tensor in enumerate(held(root))}
    holders: dict[int, set[int]] = {}
    for part in root.modules():
        for piece in _pieces(part, recurse=False):
            holders.setdefault(id(piece), set()).add(id(part))
    alike: dict[tuple[int, ...], list[tuple[str, Any]]] = {}
    for path, module in _within(root, "", sum(map(_bytes, _pieces(root)))):
        alike.setdefault(tuple(id(p) for p in _pieces(module) if id(p) in places), []).append((path, module))
    found = []
    for mine, same in alike.items():
        inside = {id(part) for _, module in same for part in module.modules()}
        own = tuple(places[p] for p in mine if holders[p] <= inside)
        modules = {id(module): module for _, module in same}
        paths = tuple(path for path, _ in same)
        found.append(Streamable(paths=paths, modules=tuple(modules.values()), places=own))
    return tuple(unit for unit in found if unit.places)


def _within(part: Any, path: str, total: int) -> Iterator[tuple[str, Any]]:
    """The modules from here on that are small enough or hold no others; a module that lies in two places, once."""
    children = [(name, child) for name, child in part.named_children() if any(True for _ in child.parameters())]
    small = sum(map(_bytes, _pieces(part))) * FINEST <= total
    if path and (small or not children) and not _is_list(part):
        yield path, part
        return
    for name, child in children:
        yield from _within(child, f"{path}.{name}" if path else name, total)


def _pieces(module: Any, *, recurse: bool = True) -> Iterator[Any]:
    return (piece.tensor for parameter in module.parameters(recurse) for piece in parts(parameter))


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _is_list(module: Any) -> bool:
    """Whether a module only holds others and is never called."""
    return type(module).__name__ in ("ModuleList", "ModuleDict")
