"""Entrance: things to do when a component is called, through the hook that diffusers looks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.errors import ApplyFailed
from planner.techniques.live import Undo, remember

MARK = "vram_planner_entrance"
"""Attribute of our hooks, by which they are told from those of others."""


def on_call(
    module: Any,
    device: Any,
    action: Callable[[], None],
    *,
    after: Callable[[], None] | None = None,
    travelling: bool = False,
) -> Undo:
    """Have `action` run before each call of a component, `after` when its `forward` is done; return what undoes it.

    The hook is accelerate's, so `decode` of an autoencoder counts as a call, and diffusers computes on `device` even
    where the component's own weights lie on the host.  Raises ApplyFailed where another hook is in the way.
    """
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        restore = remember(module, "forward", "_old_forward", "_hf_hook")
        hook = _entrance(device)
        add_hook_to_module(module, hook)
        hook.leave = lambda: (remove_hook_from_module(module), restore())
    elif not is_ours(hook):
        raise ApplyFailed(
            f"{type(module).__name__} bears 1 hook of accelerate already, {type(hook).__name__}; "
            "call pipe.remove_all_hooks() first."
        )
    hook.actions.append(action)
    hook.afters += [after] if after else []
    hook.travelling |= travelling

    def undo() -> None:
        hook.actions.remove(action)
        if after:
            hook.afters.remove(after)
        hook.travelling &= not travelling
        if not hook.actions:
            hook.leave()

    return undo


def is_ours(hook: Any) -> bool:
    """Whether a hook was put there by `on_call`."""
    return hasattr(hook, MARK)


def travels(module: Any) -> bool:
    """Whether weights of a component are moved by us."""
    hook: Any = getattr(module, "_hf_hook", None)
    return is_ours(hook) and bool(hook.travelling)


def _entrance(device: Any) -> Any:
    from accelerate.hooks import ModelHook

    class Entrance(ModelHook):  # type: ignore[misc]  # accelerate has no types
        def __init__(self) -> None:
            self.execution_device = device
            self.actions: list[Callable[[], None]] = []
            self.afters: list[Callable[[], None]] = []
            self.travelling = False
            self.leave: Callable[[], object] = lambda: None
            setattr(self, MARK, True)

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:  # noqa: ARG002
            for action in self.actions:
                action()
            return args, kwargs

        def post_forward(self, module: Any, output: Any) -> Any:  # noqa: ARG002
            for after in self.afters:
                after()
            return output

    return Entrance()
