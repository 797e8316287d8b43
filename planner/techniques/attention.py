"""Attention backends: which kernel computes softmax(QKᵀ)V in the models diffusers lets one choose for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed
from planner.events import Call, Enter, Exit, Run
from planner.kernels import Attention
from planner.program import Component, Program, Variant
from planner.request import Request
from planner.techniques.attention_libraries import LIBRARIES
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember, undone_on_error

TORCHS = {
    "flash": "_native_flash", "efficient": "_native_efficient", "cudnn": "_native_cudnn", "math": "_native_math",
    "xformers": "xformers",
}  # fmt: skip
DISPATCHED = TORCHS | {name: library.backend for name, library in LIBRARIES.items()}
"""Names of diffusers' `set_attention_backend`."""
KERNELS = ("flash", "mem_efficient", "cudnn", "math")
"""Kernels that torch.backends.cuda can switch, by the middle of their functions' names."""
SWITCHED_OFF = {"flash": ("cudnn",), "efficient": ("flash", "cudnn"), "math": ("flash", "mem_efficient", "cudnn")}
"""Kernels withheld from torch's choice so that it comes to the wanted one, or to the next where that cannot serve."""
HALF = ("float16", "bfloat16")
TRAITS = ("attention_backend", "processors", "attention_slicing")


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """One backend for every attention that diffusers can switch.  Exact: the same sum in another order.

    Kernels of other packages are for those who name them: what they gain is not known well enough to be promised.
    """

    name: str = "attention"
    scope: Scope = "call"
    needs: str = "a model whose attention diffusers can switch, and a card, dtype and head size that some kernel serves"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:
        named = [name for name in LIBRARIES if f"{self.name}={name}" in request.use]
        return (
            *(
                Option(technique=self.name, value=backend, calls=calls)
                for backend in (*TORCHS, "sliced")
                if (calls := _calls(program, backend)) and _serves(program, device, backend)
            ),
            *(
                Option(technique=self.name, value=name, fidelity=LIBRARIES[name].fidelity, calls=_calls(program, name))
                for name in named
                if request.fidelity >= LIBRARIES[name].fidelity and not self.lacks(name, program, device)
            ),
        )

    def lacks(self, value: str, program: Program, device: Device) -> str:
        """What kernels of another package need and do not find, in words that follow "it"."""
        library = LIBRARIES.get(value)
        return library.lacks(_attentions(program, value) if _dispatching(program) else (), device) if library else ""

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return variant

    def apply(self, pipe: Any, option: Option) -> Undo:
        backend = str(option.value)
        undo = in_reverse((remember_processors(pipe), remember_process()))
        with undone_on_error(undo):
            if backend == "sliced":
                _slice(pipe)
            elif dispatching := [part for part in modules(pipe).values() if dispatches(part)]:
                for part in dispatching:
                    part.set_attention_backend(DISPATCHED[backend])
            elif backend == "xformers":
                pipe.enable_xformers_memory_efficient_attention()
            elif backend in SWITCHED_OFF:
                for kernel in SWITCHED_OFF[backend]:
                    _sdp(kernel)[1](False)
            else:
                raise ApplyFailed(
                    f"{backend} was asked for, but 0 models here take it; choose {'/'.join(SWITCHED_OFF)}."
                )
        return undo

    def rewrite(self, program: Program, option: Option) -> Program:
        """Every attention that it reaches gets it; where diffusers dispatches, those that the backend can serve."""
        backend = str(option.value)
        chosen = _indices(program, backend)
        kernels = tuple(
            replace(kernel, backend=backend) if index in chosen and isinstance(kernel, Attention) else kernel
            for index, kernel in enumerate(program.kernels)
        )
        return replace(program, kernels=kernels, family=f"{program.family}/{backend}")


def _slice(pipe: Any) -> None:
    """Slice as finely as possible; processors with weights of their own, such as IP-Adapter's, would be lost."""
    import torch

    sliced = [part for part in modules(pipe).values() if hasattr(part, "set_attention_slice")]
    processors = [getattr(attention, "processor", None) for part in sliced for attention in part.modules()]
    if own := [type(processor).__name__ for processor in processors if isinstance(processor, torch.nn.Module)]:
        raise ApplyFailed(f"Slicing would drop {len(own)} processors with weights ({own[0]}); choose another backend.")
    pipe.enable_attention_slicing("max")


def dispatches(model: Any) -> bool:
    """Whether `set_attention_backend` has an effect on this model: some processor of it asks the dispatcher."""
    return any(hasattr(getattr(part, "processor", None), "_attention_backend") for part in model.modules())


def fits(backend: str, kernel: Attention) -> bool:
    """Whether the backend has a kernel for this shape (torch 2.6–2.14, sdp_utils.cpp; xFormers 0.0.29–0.0.35)."""
    half, same = kernel.dtype in HALF, kernel.head_size == kernel.value_size
    if backend == "flash":
        return half and same and kernel.head_size <= 256 and kernel.mask == "none"
    if backend == "cudnn":
        return half and kernel.head_size <= 128 and kernel.head_size % 8 == 0 and kernel.keys > 1
    if backend == "xformers" and not kernel.mask_aligned:  # its general kernel pads none (_check_bias_alignment)
        return False
    if backend in ("efficient", "xformers"):
        return kernel.head_size % (8 if half else 4) == 0
    return True


def _serves(program: Program, device: Device, backend: str) -> bool:
    """Whether card and library have it, and some kernel can use it.

    Where diffusers dispatches, or takes xformers, every kernel must: nothing stands in for one that cannot.
    """
    attentions = _attentions(program, backend)
    fitting = [fits(backend, kernel) for kernel in attentions]
    enough = all(fitting) if _dispatching(program) or backend == "xformers" else any(fitting)
    return bool(attentions) and enough and all(_card_serves(device, backend, kernel.dtype) for kernel in attentions)


def _card_serves(device: Device, backend: str, dtype: str) -> bool:
    if backend in ("flash", "cudnn"):
        return device.compute_capability >= (8, 0)
    if backend in ("efficient", "xformers") and dtype == "bfloat16" and device.compute_capability < (8, 0):
        return False
    if backend == "xformers":  # its general kernel ends with compute capability 9.0
        return device.compute_capability <= (9, 0) and importlib.util.find_spec("xformers") is not None
    return True


def _calls(program: Program, backend: str) -> tuple[str, ...]:
    """The diffusers or torch statements that choose the backend; empty where this pipeline cannot."""
    if backend == "sliced":
        able = any("attention_slicing" in component.traits for component in program.components)
        return ('pipe.enable_attention_slicing("max")',) if able else ()
    if names := _dispatching(program):
        return tuple(f'pipe.{name}.set_attention_backend("{DISPATCHED[backend]}")' for name in names)
    if not any("processors" in component.traits for component in program.components):
        return ()
    if backend == "xformers":
        return ("pipe.enable_xformers_memory_efficient_attention()",)
    return tuple(f"torch.backends.cuda.enable_{kernel}_sdp(False)" for kernel in SWITCHED_OFF.get(backend, ()))


def _dispatching(program: Program) -> tuple[str, ...]:
    return tuple(component.name for component in program.components if "attention_backend" in component.traits)


def _concerned(program: Program, backend: str) -> Callable[[Component], bool]:
    """Which components the backend reaches: those that slice, else those that dispatch, else all with processors."""
    if backend == "sliced":
        return lambda component: "attention_slicing" in component.traits
    trait = "attention_backend" if _dispatching(program) else "processors"
    return lambda component: trait in component.traits


def _candidates(program: Program, backend: str) -> frozenset[int]:
    reached = _concerned(program, backend)
    names = {component.name for component in program.components if reached(component)}
    return frozenset(
        index
        for owner, index in _runs(program)
        if owner in names and isinstance(kernel := program.kernels[index], Attention) and kernel.switchable
    )


def _attentions(program: Program, backend: str) -> list[Attention]:
    kernels = (program.kernels[index] for index in _candidates(program, backend))
    return [kernel for kernel in kernels if isinstance(kernel, Attention)]


def _indices(program: Program, backend: str) -> frozenset[int]:
    """Torch's own switches hold for the whole process, so for text encoders and autoencoders of any kind, too.

    They hold as well for what the wanted kernel cannot serve: that comes to the next, not to one that is switched off.
    """
    kernels, whole = program.kernels, backend in SWITCHED_OFF and not _dispatching(program)
    return frozenset(
        index
        for index in ({index for _, index in _runs(program)} if whole else _candidates(program, backend))
        if isinstance(kernel := kernels[index], Attention) and (whole or fits(backend, kernel))
    )


def _runs(program: Program) -> Iterator[tuple[str, int]]:
    """Every (component, kernel) that runs; a recording called twice from one component is read once."""
    seen: set[tuple[str, int]] = set()
    components = {component.name for component in program.components}

    def walk(recording: int, owner: str) -> Iterator[tuple[str, int]]:
        inside = [owner]
        for event in program.recordings[recording].work:
            if isinstance(event, Run):
                yield inside[-1], event.kernel
            elif isinstance(event, Enter):
                inside.append(_owner(event.module, inside[-1], components))
            elif isinstance(event, Exit):
                inside.pop()
            elif isinstance(event, Call):
                key = (_owner(event.module, inside[-1], components), event.recording)
                if key not in seen:
                    seen.add(key)
                    yield from walk(event.recording, key[0])

    yield from walk(program.course, "")


def _owner(module: str, owner: str, components: set[str]) -> str:
    return module.partition(".")[0] if not owner and module.partition(".")[0] in components else owner


def remember_processors(pipe: Any) -> Undo:
    """The processor object of every attention, and the backend each of them asks for."""
    undos: list[Undo] = []
    for model in modules(pipe).values():
        for part in model.modules():
            processor = getattr(part, "processor", None)
            if processor is None or not hasattr(part, "set_processor"):
                continue
            undos.append(_Seat(part, processor))
            undos.append(remember(processor, "_attention_backend"))
    return in_reverse(undos)


@dataclass(frozen=True, slots=True)
class _Seat:
    """Puts a processor back on its attention, as a submodule when it is one (IP-Adapter) and plainly when not."""

    attention: Any
    processor: Any

    def __call__(self) -> None:
        vars(self.attention).pop("processor", None)
        self.attention._modules.pop("processor", None)
        self.attention.processor = self.processor


def remember_process() -> Undo:
    """The active backend of diffusers and torch's kernel switches, both of which hold for the whole process."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    active = Registry.get_active_backend()[0]
    enabled = [(kernel, _sdp(kernel)[0]()) for kernel in KERNELS]

    def restore() -> None:
        Registry.set_active_backend(active)
        for kernel, was in enabled:
            _sdp(kernel)[1](was)

    return restore


def _sdp(kernel: str) -> tuple[Callable[[], bool], Callable[[bool], None]]:
    """How to ask and to set whether torch may use one of its attention kernels."""
    import torch

    cuda = torch.backends.cuda
    return getattr(cuda, f"{kernel}_sdp_enabled"), getattr(cuda, f"enable_{kernel}_sdp")
