"""Double: a deep copy of a live pipeline without its weights, whose hooks act on the copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from planner.errors import BadRequest
from planner.groupable import moves


class _ToHost(TorchFunctionMode):
    """Whatever tensor a deep copy meets outside the weights comes to the host: tables, counters, sigmas."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_meta and args[0].device.type != "cpu":
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().cpu()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def doubled(pipe: Any, weights: dict[int, Any]) -> Any:
    """A copy of `pipe` on the host, with `weights` in the place of the tensors whose ids they stand under.

    Adapters, processors and diffusers' hooks come along; accelerate's, which move weights, do not.  Raises BadRequest
    where a component is wrapped in compiled code or its weights are moved by diffusers' group offload.
    """
    for name, part in _components(pipe):
        _check(name, part)
    with _ToHost():
        double = copy.deepcopy(pipe, weights)
    for _, part in _components(double):
        for module in part.modules():
            _unhook(module)
            _rebind(module)
    double.set_progress_bar_config(disable=True)
    return double


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate has hooks on a module or below."""
    return any(hasattr(part, "_hf_hook") for part in module.modules())


def kept_by_hooks(component: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The weights that sequential offload keeps while the layers are empty."""
    hooks = (hook for part in component.modules() for hook in _hooks(part))
    kept = (getattr(hook, "weights_map", None) or {} for hook in hooks)
    for weights in {id(whole): whole for whole in (getattr(some, "dataset", some) for some in kept)}.values():
        yield from weights.values()


def _components(pipe: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    return ((name, part) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module))


def _check(name: str, part: torch.nn.Module) -> None:
    if isinstance(part, torch._dynamo.OptimizedModule):
        raise BadRequest(
            f"pipe.{name} is wrapped by torch.compile; hand in the module itself, pipe.{name} = pipe.{name}._orig_mod, "
            "and say how many calls follow (calls=100), so that the plan compiles where that pays."
        )
    if any(map(moves, part.modules())):
        raise BadRequest(
            f"pipe.{name} is in diffusers' group offload, which moves its weights; call "
            "planner.techniques.group.remove_group_offload(pipe) first."
        )


def _unhook(module: Any) -> None:
    """Take accelerate's hook off a copied module; a weight that the hook kept goes back to its place."""
    from accelerate.hooks import ModelHook, remove_hook_from_module

    for hook in _hooks(module):
        kept = getattr(hook, "weights_map", None) or {}
        for name in kept and hook.original_devices:
            owner, _, leaf = name.rpartition(".")
            seat = module.get_submodule(owner)
            table = seat._parameters if leaf in seat._parameters else seat._buffers
            table[leaf] = kept.get(name, table[leaf])
    if hasattr(module, "_hf_hook"):
        module._hf_hook = ModelHook()  # whose leaving moves nothing
        remove_hook_from_module(module)


def _hooks(module: Any) -> tuple[Any, ...]:
    """The hooks that accelerate has on a module, one by one."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _rebind(module: Any) -> None:
    """Register the hooks of a copied module anew: its copied forward still calls into the module it was copied from."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None or not registry._fn_refs:
        return
    innermost = registry._fn_refs[0]
    module.forward = innermost.original_forward or innermost.forward
    hooks = [(registry.hooks[name], name) for name in registry._hook_order]
    module._diffusers_hook = type(registry)(module)
    for hook, name in hooks:
        hook.initialize_hook = _as_it_is
        module._diffusers_hook.register_hook(hook, name)
        del hook.initialize_hook


def _as_it_is(module: Any) -> Any:
    """The copy has been through what a hook does to a module when it is registered first."""
    return module
