"""Mover: weights of a live component that travel from host memory to the card just before they are needed.

Each unit's weights lie in one block of page-locked host memory, of which the parameters are views.  While the unit runs
they are views of a copy on the card instead.  Copies run on a stream of their own, one unit ahead of the kernels; which
unit follows which is learnt in the pass before.  What a step cache passes over is not fetched, but for the first of it,
which leaves when another unit comes.  Nothing travels back, for nothing is written to the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial, wraps
from itertools import accumulate
from typing import Any

from planner.streaming import aligned
from planner.techniques.live import Undo, undone_on_error


def room(tensor: Any) -> int:
    """Bytes of a tensor in a unit's block."""
    return aligned(int(tensor.numel() * tensor.element_size()))


class Cargo:
    """The weights of one unit: at home on the host, and on the card while they are wanted."""

    def __init__(self, modules: Sequence[Any], parameters: Sequence[Any], device: Any, stream: Any) -> None:
        self.modules, self._parameters = modules, parameters
        self._device, self._stream = device, stream
        self._before = [parameter.device for parameter in parameters]
        self._home, self._locked = page_locked(sum(map(room, parameters)), device)
        self._views = tuple(views(self._home, parameters))
        for parameter, view in zip(parameters, self._views, strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        self._card: Any = None
        self._ready: Any = None
        self.aboard = False

    @property
    def here(self) -> bool:
        """Whether its room on the card is taken."""
        return self._card is not None

    def fetch(self) -> None:
        """Take room on the card and set the copy going; it waits for kernels that still use what was there before."""
        import torch

        with torch.inference_mode(mode=False):
            self._card = torch.empty_like(self._home, device=self._device)
        if self._stream is None:
            self._card.copy_(self._home)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._card.copy_(self._home, non_blocking=True)
            self._ready = self._stream.record_event()

    def board(self) -> None:
        """The parameters are on the card from here on."""
        if not self.here:
            self.fetch()
        if not self.aboard:
            self._settle()
            for parameter, view in zip(self._parameters, views(self._card, self._parameters), strict=True):
                parameter.data = view
            self.aboard = True

    def leave(self) -> None:
        """The parameters are at home again and the room on the card is free."""
        self._settle()
        if self.aboard:
            for parameter, view in zip(self._parameters, self._views, strict=True):
                parameter.data = view
        self._card, self.aboard = None, False

    def dissolve(self) -> None:
        """Memory of its own for each parameter, where it was before."""
        self.leave()
        for parameter, view, device in zip(self._parameters, self._views, self._before, strict=True):
            parameter.data = view.clone() if view.device == device else view.to(device)
        self._views = ()
        if self._locked:
            unlock(self._home, self._device)

    def _settle(self) -> None:
        """Kernels wait for the copy; so must whatever takes its room."""
        if self._ready is not None:
            import torch

            torch.cuda.current_stream(self._device).wait_event(self._ready)
            self._ready = None


class Mover:
    """Moves the units of one component: some at every pass, others once, when the component is first called."""

    def __init__(self, streamed: Sequence[Cargo], visiting: Sequence[Cargo]) -> None:
        self._visiting = visiting
        self._follows: dict[Cargo, Cargo] = {}
        self._pass: list[Cargo] = []
        self._coming: Cargo | None = None
        self._undos = [
            undo
            for cargos, before in ((streamed, self._before), (visiting, Cargo.board))
            for cargo in cargos
            for undo in hooked(cargo, before, Cargo.leave if cargos is streamed else None)
        ]

    def begin(self) -> None:
        """The component is called: the visitors set out, then what ran first in the last pass."""
        first, self._pass = self._pass[0] if self._pass else None, []
        for cargo in self._visiting:
            if not cargo.here:
                cargo.fetch()
        self._expect(first)

    def end(self) -> None:
        """It has run: what was fetched in vain leaves."""
        self._expect(None)

    def evict(self) -> None:
        """The visitors leave."""
        for cargo in self._visiting:
            cargo.leave()

    def detach(self) -> None:
        """Take the hooks off."""
        for undo in reversed(self._undos):
            undo()

    def _expect(self, cargo: Cargo | None) -> None:
        """Fetch what is thought to come next, in place of what was thought before."""
        if self._coming is not None and self._coming is not cargo and not self._coming.aboard:
            self._coming.leave()
        self._coming = cargo
        if cargo is not None and not cargo.here:
            cargo.fetch()

    def _before(self, cargo: Cargo) -> None:
        self._expect(cargo)
        cargo.board()
        if cargo in self._pass:  # a component used past its `forward` begins its passes here
            self._pass = []
        if self._pass:
            self._follows[self._pass[-1]] = cargo
        self._pass.append(cargo)
        self._expect(self._follows.get(cargo))


def hooked(cargo: Cargo, before: Any, after: Any) -> Iterator[Undo]:
    """What takes off hooks that call `before(cargo)` and, even if it fails, `after(cargo)` around its modules.

    Around what a step cache may pass over, within the cache's own hook.
    """
    for module in cargo.modules:
        reference = _passed_over(module)
        if reference is not None:
            yield _within(reference, partial(before, cargo), partial(after, cargo) if after else None)
            continue
        yield module.register_forward_pre_hook(lambda _module, _inputs: before(cargo), prepend=True).remove
        if after is not None:
            yield module.register_forward_hook(lambda _module, _inputs, _output: after(cargo), always_call=True).remove


def _passed_over(module: Any) -> Any:
    """Where diffusers keeps a `forward` of its own that a hook of it may leave out; None where none may (0.42.1)."""
    registry = vars(module).get("_diffusers_hook")
    references = registry._fn_refs if registry is not None else ()
    return next((reference for reference in references if reference.original_forward is not None), None)


def _within(reference: Any, before: Callable[[], None], after: Callable[[], None] | None) -> Undo:
    forward = reference.original_forward

    @wraps(forward)
    def carried(*args: Any, **kwargs: Any) -> Any:
        before()
        try:
            return forward(*args, **kwargs)
        finally:
            if after is not None:
                after()

    reference.original_forward = carried

    def undo() -> None:
        reference.original_forward = forward

    return undo


def views(block: Any, parameters: Sequence[Any]) -> Iterator[Any]:
    """A view of the block for each parameter, of its dtype, shape and strides."""
    starts = accumulate(map(room, parameters), initial=0)
    for parameter, start in zip(parameters, starts, strict=False):
        typed = block[start : start + parameter.numel() * parameter.element_size()].view(parameter.dtype)
        yield typed.as_strided(parameter.shape, parameter.stride())


def own_stream(device: Any) -> Any:
    """A stream for copies alone; None where there are none."""
    import torch

    new: Any = torch.cuda.Stream
    return new(device) if device.type == "cuda" else None


def page_locked(size: int, device: Any) -> tuple[Any, bool]:
    """A block of host memory, and whether the card can copy from it while kernels run.

    Registering locks just these bytes; torch's own pinned tensors are rounded up to a power of two.  Where the system
    refuses to lock more, the block stays ordinary memory, and copies from it are only slower.
    """
    import torch

    block = torch.empty(size, dtype=torch.uint8)
    if device.type != "cuda":
        return block, False
    runtime = _runtime()
    locked = runtime.cudaHostRegister(block.data_ptr(), size, 0) == runtime.cudaError.success
    if not locked:
        with suppress(RuntimeError):  # the next kernel would report the refusal as its own error
            torch.zeros(1, device=device)
    return block, locked


def unlock(block: Any, device: Any) -> None:
    """Give the pages of a locked block free."""
    import torch

    torch.cuda.synchronize(device)
    _runtime().cudaHostUnregister(block.data_ptr())


def _runtime() -> Any:
    import torch

    return getattr(torch.cuda, "cudart")()  # noqa: B009  (it has no types)


def moved(tensors: Sequence[Any], device: Any) -> Undo:
    """Move tensors as they are, all or none, and return what moves them back."""
    before = [tensor.device for tensor in tensors]

    def undo() -> None:
        for tensor, home in zip(tensors, before, strict=True):
            tensor.data = tensor.data.to(home)

    with undone_on_error(undo):
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
    return undo
