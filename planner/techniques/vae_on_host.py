"""Decoding on the host: where not even the decode fits on the card, the CPU does it, slowly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from planner.aside import calls_of, worked_aside
from planner.device import Device
from planner.errors import ApplyFailed
from planner.kernels import ITEM_SIZE, Attention
from planner.program import Component, Program, Variant
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.entrance import on_call
from planner.techniques.live import default_device, in_reverse, modules, remember, undone_on_error
from planner.techniques.mover import moved

FOREIGN = ("xformers",)
"""Attention backends that have no kernels for the CPU."""


@dataclass(frozen=True, slots=True)
class VaeOnHost:
    """The autoencoder stays in host RAM and decodes there in single precision.  Exact up to kernel rounding.

    For those who name it, and the last resort of a plan that would else not fit.
    """

    device: str = ""
    """Where the pipeline computes otherwise; empty: cuda where there is one, else cpu."""
    name: str = "vae_on_host"
    scope: Scope = "call"
    needs: str = "an autoencoder that is not quantized and with which the pipeline only decodes, and to be named"
    relieves: frozenset[str] = frozenset({"autoencoder"})
    """What is over where a plan resorts to this."""

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        if self.name not in {name.partition("=")[0] for name in request.use}:
            return ()
        return tuple(self._option(component) for component in program.components if _can(program, component))

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return variant

    def rewrite(self, program: Program, option: Option) -> Program:
        return worked_aside(program, str(option.value))

    def apply(self, pipe: Any, option: Option) -> Undo:
        parts, name = modules(pipe), str(option.value)
        if not hasattr(parts.get(name), "decode"):
            raise ApplyFailed(f"{name} is none of {len(parts)} components here that decode; plan this pipeline.")
        return decode_on_host(parts[name], device=self.device)

    def _option(self, component: Component) -> Option:
        import_ = "from planner.techniques.vae_on_host import decode_on_host"
        call = f"decode_on_host(pipe.{component.name})"
        return Option(technique=self.name, value=component.name, calls=(import_, call))


def decode_on_host(vae: Any, *, device: str = "") -> Undo:
    """Keep an autoencoder on the host; its `decode` fetches what it is handed and sends back what it made.

    Where its weights are in half precision, single-precision copies of them live while it works.
    """
    import torch

    target = torch.device(device or default_device())
    undos = [remember(vae, "decode"), moved([*vae.parameters(), *vae.buffers()], torch.device("cpu"))]
    with undone_on_error(in_reverse(undos)):
        undos.append(on_call(vae, target, lambda: None, travelling=True))
        vae.decode = _there_and_back(vae, vae.decode)
    return in_reverse([undos[1], undos[2], undos[0]])


def _there_and_back(vae: Any, decode: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    host = torch.device("cpu")

    @functools.wraps(decode)
    def decoded(z: Any, *args: Any, **kwargs: Any) -> Any:
        there = functools.partial(_sent, device=host, floating=torch.float32)
        with _single(vae):
            made = decode(there(z), *map(there, args), **{name: there(value) for name, value in kwargs.items()})
        return _sent(made, device=z.device, floating=z.dtype)

    return decoded


@contextmanager
def _single(vae: Any) -> Iterator[None]:
    """Weights in single precision for a while; what they were before is kept, not rounded again."""
    import torch

    half = (torch.float16, torch.bfloat16)
    before = [(t, t.data) for t in (*vae.parameters(), *vae.buffers()) if t.dtype in half]
    try:
        for tensor, data in before:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def _sent(value: Any, *, device: Any, floating: Any) -> Any:
    """Tensors on another device, floating ones of that dtype, inside tuples and outputs of diffusers too.

    They are cast on the host, so that nothing but the result takes room on the card.
    """
    import torch
    from diffusers.utils import BaseOutput

    again = functools.partial(_sent, device=device, floating=floating)
    if isinstance(value, torch.Tensor):
        dtype = floating if value.is_floating_point() else value.dtype
        return value.cpu().to(dtype).to(device)
    if isinstance(value, BaseOutput):
        return type(value)(**{name: again(entry) for name, entry in value.items()})
    return type(value)(map(again, value)) if type(value) in (list, tuple) else value


def _can(program: Program, component: Component) -> bool:
    """Whether it decodes and does nothing else, in kernels that the host has."""
    called = set(calls_of(program, component.name))
    foreign = any(isinstance(kernel, Attention) and kernel.backend in FOREIGN for kernel in program.kernels)
    plain = component.dtype in ITEM_SIZE and not {"quantized", "travels"} & component.traits
    return "autoencoder" in component.traits and plain and called == {"decode"} and not foreign
