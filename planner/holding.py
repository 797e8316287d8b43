"""Holding: layers cast while they run give back the very weights they had.

diffusers casts a layer's weights up before it runs, lets the small ones go, and rounds the large ones down again after
it.  The numbers are the same, but in the allocator every weight moves at every step, until small holes lie between them
all.  Here the small ones are kept meanwhile and taken up again: a cast less, and weights that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HOOK = "layerwise_casting"
"""Name under which diffusers registers it."""


def hold(component: Any) -> Callable[[], None]:
    """Let every layer of a module that diffusers casts while it runs keep its weights; returns what lets go again."""
    undos = [_held(hook.fn_ref) for part in component.modules() if (hook := _casting(part)) is not None]

    def undo() -> None:
        for each in undos:
            each()

    return undo


def _casting(part: Any) -> Any:
    """The hook that casts a layer's weights; None where there is none."""
    registry = getattr(part, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def _held(functions: Any) -> Callable[[], None]:
    """Put keeping and giving back around a hook's functions."""
    before, after = functions.pre_forward, functions.post_forward
    kept: list[tuple[dict[str, Any], str, Any, Any]] = []

    def cast(layer: Any, *args: Any, **kwargs: Any) -> Any:
        give_back()  # after a call that was broken off
        for table in (layer._parameters, layer._buffers):
            kept.extend((table, name, tensor, tensor.data) for name, tensor in table.items() if tensor is not None)
        return before(layer, *args, **kwargs)

    def give_back() -> None:
        for table, name, tensor, data in kept:
            if tensor.dtype != data.dtype:
                tensor.data = data
            table[name] = tensor
        kept.clear()

    def ran(layer: Any, output: Any) -> Any:  # noqa: ARG001  (the signature is diffusers')
        give_back()
        return output

    def undo() -> None:
        give_back()
        functions.pre_forward, functions.post_forward = before, after

    functions.pre_forward, functions.post_forward = cast, ran
    return undo
