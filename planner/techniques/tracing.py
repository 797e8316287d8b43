"""Tracing: the denoiser's Python is taken out of the loop, by torch.jit.trace or torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed
from planner.events import Call, Drop
from planner.program import DENOISERS, STREAMED, Component, Program, Variant
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember, undone_on_error

TRACEABLE = "UNet2DConditionModel"
"""The one class whose traced graph is known to serve every step: its control flow depends on shapes alone."""
IMPORT = "from planner.techniques.tracing import trace_calls"
"""The inputs of `torch.jit.trace` must be caught in a call: those of a UNet are not all tensors."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """Run the denoiser from a recorded graph.  Exact up to kernel rounding.

    Offered for several calls of one shape: making the graph takes longer than most single calls save.
    """

    backend: str = "inductor"
    """What torch.compile hands its graphs to."""
    name: str = "tracing"
    scope: Scope = "denoiser"
    needs: str = "several calls of one shape (calls=2 or more) and a denoiser whose weights stay on the card"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        if request.calls < 2 or program.variant.remembers:  # a graph takes one way, and caches two
            return ()
        denoisers = tuple(component for component in program.components if "denoiser" in component.traits)
        able = (("jit", _jit_calls(program, denoisers)), ("compile", _compile_calls(program, denoisers)))
        return tuple(Option(technique=self.name, value=value, calls=calls) for value, calls in able if calls)

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return variant

    def apply(self, pipe: Any, option: Option) -> Undo:
        denoisers = [part for name, part in modules(pipe).items() if is_denoiser(name)]
        if not denoisers:
            raise ApplyFailed(f"{type(pipe).__name__} has 0 denoisers to trace; leave `tracing` out.")
        if option.value == "jit":
            return in_reverse([trace_calls(part) for part in denoisers])
        undo = in_reverse(remember(m, "_compiled_call_impl") for part in denoisers for m in part.modules())
        with undone_on_error(undo):
            for part in denoisers:
                compile_ = part.compile_repeated_blocks if getattr(part, "_repeated_blocks", None) else part.compile
                compile_(backend=self.backend)
        return undo

    def rewrite(self, program: Program, option: Option) -> Program:
        denoisers = [component for component in program.components if "denoiser" in component.traits]
        if option.value == "jit":
            return replace(program, tracing="jit")
        regional = all("repeated_blocks" in component.traits for component in denoisers)
        return replace(program, tracing="regional" if regional else "compile")


def is_denoiser(name: str) -> bool:
    """Whether a component of this name runs once per step."""
    return name in DENOISERS


def trace_calls(module: Any) -> Undo:
    """Have `module` trace itself on its first call and answer calls of the same shapes from the graph."""
    undo = remember(module, "forward")
    module.forward = _Traced(module=module, eager=module.forward)
    return undo


def _jit_calls(program: Program, denoisers: tuple[Component, ...]) -> tuple[str, ...]:
    """A graph holds on to its weights, so they must stay where they are, and be no more than tensors."""
    if any("quantized" in part.traits for part in denoisers):
        return ()
    if _travel_whole(program) or _travel_singly(program) or {part.kind for part in denoisers} != {TRACEABLE}:
        return ()
    return (IMPORT, *(f"trace_calls(pipe.{part.name})" for part in denoisers))


def _compile_calls(program: Program, denoisers: tuple[Component, ...]) -> tuple[str, ...]:
    """Hooks break graphs: compiled blocks bear hooks on the component around them, but none inside."""
    regional = all("repeated_blocks" in part.traits for part in denoisers)
    if _travel_singly(program) or (_travel_whole(program) and not regional):
        return ()
    return tuple(
        f"pipe.{part.name}.{'compile_repeated_blocks' if 'repeated_blocks' in part.traits else 'compile'}()"
        for part in denoisers
    )


def _travel_whole(program: Program) -> bool:
    """Whether components leave the card during a call."""
    return any(isinstance(event, Drop) for event in program.recordings[program.course].events)


def _travel_singly(program: Program) -> bool:
    """Whether weights arrive inside components."""
    course = program.recordings[program.course].events
    return any(isinstance(event, Call) and event.recording >= STREAMED for event in course)


@dataclass(slots=True, eq=False)
class _Traced:
    """The forward of a module that is traced on its first call.

    Tensors, also those in dictionaries and sequences, are the graph's inputs; every other value is part of the
    signature.  A call of another signature runs as ever.
    """

    module: Any
    eager: Callable[..., Any]
    signature: object = None
    graph: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs, "return_dict": False}
        if torch.is_grad_enabled():
            return self.eager(*args, **kwargs)
        if self.graph is None:
            self.signature, self.graph = _signature(given), self._trace(given)
        if _signature(given) != self.signature:
            return self.eager(*args, **kwargs)
        output = self.graph(*_tensors(given))
        return output if kwargs.get("return_dict") is False else _output(output)

    def _trace(self, given: dict[Any, Any]) -> Callable[..., Any]:
        import warnings

        import torch

        traced, eager = self.module, self.eager

        class Positional(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = traced

            def forward(self, *inputs: Any) -> Any:
                filled = _filled(given, iter(inputs))
                positional = [filled.pop(index) for index in range(len(filled)) if index in filled]
                return eager(*positional, **filled)

        # An instance's own forward would be taken for a method of the graph.
        own = vars(traced).pop("forward")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=getattr(torch.jit, "TracerWarning"))  # noqa: B009
                trace: Callable[..., Callable[..., Any]] = torch.jit.trace
                graph = trace(Positional(), tuple(_tensors(given)), check_trace=False)
        finally:
            traced.forward = own
        return graph


def _output(output: tuple[Any, ...]) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    return UNet2DConditionOutput(sample=output[0])


def _tensors(value: Any) -> Iterator[Any]:
    """The tensors in nested dictionaries and sequences, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


def _filled(value: Any, inputs: Iterator[Any]) -> Any:
    """The same nest with its tensors replaced, in order, by `inputs`."""
    import torch

    if isinstance(value, torch.Tensor):
        return next(inputs)
    if isinstance(value, dict):
        return {name: _filled(entry, inputs) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(entry, inputs) for entry in value)
    return value


def _signature(value: Any) -> object:
    """What must be equal for a graph to serve another call."""
    import torch

    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, dict):
        return tuple((name, _signature(entry)) for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_signature(entry) for entry in value)
    return value
