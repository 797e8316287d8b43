"""Replay: a module called again with the same shapes is not run again.

Every module of a ghost records its body.  A second call of a module that does the same (same fingerprint, same
signature) is noted as a call of that recording, and its outputs are made anew: denoising steps, guidance branches,
equal blocks and tiles cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from planner.dispatch import nbytes
from planner.effects import Effect, effect_of, repeat
from planner.ghost import LARGE
from planner.metas import tensors
from planner.packed import parts
from planner.recorder import Done, Recorder
from planner.signature import Opaque, Shape, fingerprint, made_anew, mapped, shape_of, signature
from planner.streamable import held

OUTSIDE = 10**9
"""From here on a shape's source is a table the module keeps, on nobody's account."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A recorded call that can be replayed: its recording and the outputs' shapes."""

    recording: int
    outputs: Any


class Over(BaseException):
    """Leaves a pipeline's call of which no more is to be seen; no error, so that no pipeline takes it for one."""


class Replay:
    """Wraps the methods of ghosts.  One instance remembers across all programs of a pipeline."""

    def __init__(self, recorder: Recorder, mode: FakeTensorMode) -> None:
        self._recorder = recorder
        self._mode = mode
        self._memories: dict[Hashable, Memory | Effect] = {}
        self._fingerprints: dict[int, Hashable] = {}
        self._numbers: dict[Hashable, Hashable] = {}
        self.asked: dict[str, list[tuple[Any, Any, tuple[torch.dtype, ...]]]] = {}
        """Arguments of the component calls under way, as shapes, and the dtypes of an autoencoder then."""
        self.resting: dict[int, tuple[int, ...]] = {}
        """Bytes of the weights of modules that are cast only while they run, by their ids."""
        self.over: Callable[[str], bool] = lambda _: False
        """Whether no more of the pipeline's call is to be seen as a component is called."""

    def forget_fingerprints(self) -> None:
        """After modules changed (dtype, flags, layout)."""
        self._fingerprints.clear()

    def wrap(self, owner: torch.nn.Module, method: str, module: str, *, buffers: bool = False) -> None:
        """Record `owner.method` as a body called `module`, on this instance only.

        `buffers` says whether sequential offload moves the component's buffers too.
        """
        real = getattr(owner, method)
        name = type(owner).__name__ if method == "forward" else method

        @functools.wraps(real)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            return self._run(owner, real, name, module, buffers, args, kwargs)

        setattr(owner, method, recorded)

    def wrap_mask(self, owner: torch.nn.Module, method: str) -> None:
        """Record one round of a loop over the rows of a causal mask, and note it once a row.

        `method` takes frames, pixels of a frame, dtype, device and batch size; half a row is zeros on average.
        """
        real = getattr(owner, method)

        @functools.wraps(real)
        def masked(n_frame: int, n_hw: int, dtype: Any, device: Any, batch_size: int | None = None) -> torch.Tensor:
            rows = n_frame * n_hw
            if self._recorder.depth == 0 or rows < LARGE:
                return cast(torch.Tensor, real(n_frame, n_hw, dtype, device, batch_size))
            mask = torch.full((rows, rows), float("-inf"), dtype=dtype, device=device)
            self._recorder.enter("", method)
            self._run(owner, lambda row: row.fill_(0), f"{method}.round", "", False, (mask[0, : rows // 2],), {})
            self._recorder.again(rows - 1)
            self._recorder.leave()
            return mask if batch_size is None else mask.unsqueeze(0).expand(batch_size, -1, -1)

        setattr(owner, method, masked)

    def wrap_blend(self, owner: torch.nn.Module, method: str, dimension: int) -> None:
        """Record one round of a loop over the rows of a seam, and note it once a row.

        `method` takes two tiles and how far they overlap, and changes the second in place.
        """
        real = getattr(owner, method)

        @functools.wraps(real)
        def blended(a: torch.Tensor, b: torch.Tensor, extent: int) -> torch.Tensor:
            rounds = min(a.shape[dimension], b.shape[dimension], extent)
            if self._recorder.depth == 0 or rounds < 1:
                return cast(torch.Tensor, real(a, b, extent))
            self._recorder.enter("", method)
            row = self._run(owner, real, f"{method}.round", "", False, (a, b, 1), {})
            self._recorder.again(rounds - 1)
            self._recorder.leave()
            return cast(torch.Tensor, row)

        setattr(owner, method, blended)

    def _run(
        self,
        owner: torch.nn.Module,
        real: Callable[..., Any],
        name: str,
        module: str,
        buffers: bool,
        args: Any,
        kwargs: Any,
    ) -> Any:
        if self._recorder.depth == 0:
            return real(*args, **kwargs)
        if self._recorder.depth == 1:
            if self.over(module):
                raise Over
            dtypes = tuple(tensor.dtype for tensor in held(owner)) if hasattr(owner, "decode") else ()
            self.asked.setdefault(module, []).append((*self._shapes(args, kwargs), dtypes))
        key = self._key(owner, name, args, kwargs)
        if key is not None and (memory := self._memories.get(key)) is not None:
            if isinstance(memory, Effect):
                return repeat(memory, self._recorder, (list(args), kwargs), self._mode)
            return self._again(memory, module, args, kwargs)
        before = [self._recorder.serial_of(t.untyped_storage()) for t in tensors((args, kwargs))]
        own = self._own(owner, buffers=buffers) if name == type(owner).__name__ else ()
        self._recorder.enter(module, name, own)
        out = real(*args, **kwargs)
        given = {t.untyped_storage()._cdata: -1 - n for n, t in enumerate(tensors((args, kwargs)))}
        done = self._recorder.leave()
        if key is None:
            return out
        changed = _mutable(args, kwargs) and key != self._key(owner, name, args, kwargs)
        if changed or done.recording is None:
            effect = effect_of(self._recorder, done.noted, before, (list(args), kwargs), out)
            if effect is not None:
                self._memories[key] = effect
        else:
            self._remember(key, done, out, given)
        return out

    def _own(self, owner: torch.nn.Module, *, buffers: bool) -> tuple[int, ...]:
        return self.resting.get(id(owner)) or own_weights(owner, buffers=buffers)

    def _shapes(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            given, named = mapped((list(args), kwargs), lambda tensor: shape_of(tensor, OUTSIDE))
        except Opaque:
            return None, None
        return given, named

    def _key(self, owner: torch.nn.Module, name: str, args: Any, kwargs: Any) -> Hashable | None:
        try:
            return (name, fingerprint(owner, self._fingerprints, self._numbers), signature(args), signature(kwargs))
        except Opaque:
            return None

    def _remember(self, key: Hashable, done: Done, out: Any, given: dict[int, int]) -> None:
        numbers = {serial: local for local, serial in done.kept}
        used: set[int] = set()

        def describe(tensor: torch.Tensor) -> Shape:
            storage = tensor.untyped_storage()
            local = numbers.get(self._recorder.serial_of(storage))
            source = local if local is not None else given.get(storage._cdata)
            if source is None:
                if isinstance(tensor, FakeTensor):
                    raise Opaque("an output that is a weight")
                source = OUTSIDE + len(used)  # a small table of the module's own, never on the card's account
            used.add(source)
            return shape_of(tensor, source)

        try:
            outputs = mapped(out, describe)
        except Opaque:
            return
        if done.recording is not None and set(numbers.values()) <= used:
            self._memories[key] = Memory(recording=done.recording, outputs=outputs)

    def _again(self, memory: Memory, module: str, args: Any, kwargs: Any) -> Any:
        given = list(tensors((args, kwargs)))
        bases: dict[int, torch.Tensor] = {}

        def remake(shape: Shape) -> torch.Tensor:
            if shape.source < 0:
                argument = given[-1 - shape.source]
                if argument.size() == shape.size and argument.stride() == shape.stride:
                    return argument
                return argument.as_strided(shape.size, shape.stride, shape.offset)
            return made_anew(shape, bases, self._mode)

        with torch.utils._python_dispatch._disable_current_modes():
            out = mapped(memory.outputs, remake)
        storages = {source: base.untyped_storage() for source, base in bases.items() if source < OUTSIDE}
        self._recorder.replay(memory.recording, module, storages)
        return out


def _mutable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the body could have changed an argument for its caller, such as a list of cached features."""
    return any(isinstance(value, (list, dict)) for value in (*args, *kwargs.values()))


def own_weights(module: torch.nn.Module, *, buffers: bool) -> tuple[int, ...]:
    """Bytes of each parameter, and perhaps buffer, that the module itself holds and accelerate's hooks move.

    Buffers that are not saved never leave the card (AlignDevicesHook, remove_non_persistent).
    """
    saved = (t for name, t in module._buffers.items() if name not in module._non_persistent_buffers_set)
    held = (*module._parameters.values(), *(saved if buffers else ()))
    return tuple(nbytes(piece.tensor) for t in held if t is not None and t.numel() for piece in parts(t))


def anchored_buffers(root: torch.nn.Module, *, buffers: bool) -> dict[str, tuple[torch.Tensor, ...]]:
    """The buffers that those hooks leave on the card, by module: what is not saved, or all of them."""
    found: dict[str, list[torch.Tensor]] = {}
    seen: set[int] = set()
    for path, module in root.named_modules():
        for name, tensor in module._buffers.items():
            if tensor is None or not tensor.numel() or id(tensor) in seen:
                continue
            if not (buffers and name not in module._non_persistent_buffers_set):
                seen.add(id(tensor))
                found.setdefault(path, []).append(tensor)
    return {path: tuple(tensors) for path, tensors in found.items()}
