"""Small tools for configuring a live pipeline: find its modules, remember what is about to change, put it back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from planner import packed

Undo = Callable[[], None]


def modules(pipe: Any) -> dict[str, Any]:
    """The components that are torch modules, by name, in the pipeline's order."""
    import torch

    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def parts(pipe: Any) -> Iterator[Any]:
    """Every module of every component, each once."""
    return parts_of(modules(pipe).values())


def parts_of(components: Iterable[Any]) -> Iterator[Any]:
    """Every module of these components, each once."""
    seen: set[int] = set()
    for component in components:
        for part in component.modules():
            if id(part) not in seen:
                seen.add(id(part))
                yield part


def tensors(pipe: Any) -> Iterator[Any]:
    """Every parameter and buffer of every component, tied ones once."""
    return tensors_of(modules(pipe).values())


def tensors_of(components: Iterable[Any]) -> Iterator[Any]:
    """Every parameter and buffer of these components, tied ones once."""
    seen: set[int] = set()
    for part in parts_of(components):
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def on_card(pipe: Any) -> int:
    """Bytes that the pipeline's weights take on CUDA devices, where torch rounds each up to 512."""
    pieces = (piece.tensor for tensor in tensors(pipe) for piece in packed.parts(tensor))
    return sum(-(-piece.nbytes // 512) * 512 for piece in pieces if piece.device.type == "cuda")


def beside(pipe: Any) -> int:
    """Bytes that this process holds in torch's allocator for other things than the pipeline's weights."""
    import torch

    return max(torch.cuda.memory_allocated() - on_card(pipe), 0) if torch.cuda.is_available() else 0


def is_ghost(tensor: Any) -> bool:
    """Whether a tensor has no bytes: a pipeline that is only recorded is configured by the same code."""
    from torch._subclasses.fake_tensor import FakeTensor

    return all(isinstance(piece.tensor, FakeTensor) for piece in packed.parts(tensor))


def remember(owner: object, *names: str) -> Undo:
    """What restores these instance attributes of `owner`; one that is absent now is absent again afterwards."""
    before = {name: vars(owner)[name] for name in names if name in vars(owner)}

    def restore() -> None:
        for name in names:
            if name in before:
                vars(owner)[name] = before[name]
            else:
                vars(owner).pop(name, None)

    return restore


def in_reverse(undos: Iterable[Undo]) -> Undo:
    """One undo for several, the latest first."""
    steps = tuple(undos)

    def undo() -> None:
        for step in reversed(steps):
            step()

    return undo


@contextmanager
def undone_on_error(undo: Undo) -> Iterator[None]:
    """Run the body; if it raises, take back what it did and let the error go on."""
    with ExitStack() as stack:
        stack.callback(undo)
        yield
        stack.pop_all()


def default_device() -> str:
    """Where a pipeline computes when nobody says."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def called(original: type, call: Callable[..., Any]) -> type:
    """A subclass that looks like `original` and runs `call` when it is called."""
    whole_call: Any = original.__call__
    call.__signature__ = inspect.signature(whole_call)  # type: ignore[attr-defined]
    call.__doc__ = whole_call.__doc__
    names = {"__call__": call, "__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (original,), {**names, "__doc__": original.__doc__})
