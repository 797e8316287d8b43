"""The recorder: lives of storages and kernels, body by body, as torch dispatches them.

While a body is under way its buffers carry serial numbers that are unique in the whole recording; when it ends they
are renumbered from zero, so that equal bodies become equal values and are kept once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count

import torch

from planner.events import Alloc, Call, Cast, Ending, Enter, Event, Exit, Free, Gone, Run
from planner.kernels import Kernel
from planner.packed import parts
from planner.program import Recording


@dataclass(slots=True, eq=False)
class Frame:
    """One body under way; `born` holds the buffers that came to life in it and live."""

    module: str
    name: str
    own: tuple[int, ...]
    events: list[Event] = field(default_factory=list)
    born: set[int] = field(default_factory=set)
    inlined: bool = False
    """The body freed what its caller had allocated and cannot stand on its own."""


@dataclass(frozen=True, slots=True)
class Done:
    """A body that ended: its recording, for each survivor local number and serial, and what its caller noted of it."""

    recording: int | None
    """None where the body had to be written into its caller."""
    kept: tuple[tuple[int, int], ...]
    noted: tuple[Event, ...]


class Recorder:
    """Collects recordings and kernels; each distinct one is kept once."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []
        self.kernels: list[Kernel] = []
        self._recording_index: dict[tuple[Recording, tuple[type[Event], ...]], int] = {}
        self._kernel_index: dict[Kernel, int] = {}
        self._frames: list[Frame] = []
        self._watched: dict[int, tuple[int, weakref.ref[torch.UntypedStorage] | None]] = {}
        self._serial = 0
        self.left: dict[int, int] = {}
        """Serials of buffers that outlived the call before, with their place among them."""
        self._gone: list[tuple[int, Gone]] = []
        self.on_host = False
        """Whether what is made now lies on the host."""

    @property
    def depth(self) -> int:
        """Bodies under way; 1 is the pipeline's own code."""
        return len(self._frames)

    def enter(self, module: str, name: str, own: tuple[int, ...] = ()) -> None:
        """Begin a body."""
        self._frames.append(Frame(module=module, name=name, own=own))

    def leave(self) -> Done:
        """End the innermost body."""
        frame = self._frames.pop()
        caller = self._frames[-1] if self._frames else None
        if frame.inlined and caller:
            noted: tuple[Event, ...] = (Enter(frame.module, frame.own), *frame.events, Exit())
            caller.events += noted
            caller.born |= frame.born
            return Done(recording=None, kept=(), noted=noted)
        events, local = _renumbered(frame.events, anew=caller is not None)
        index = self.keep(Recording(name=frame.name, own=frame.own, events=events))
        kept = tuple((local[serial], serial) for serial in sorted(frame.born))
        call = Call(index, frame.module, kept)
        if caller:
            caller.events.append(call)
            caller.born |= frame.born
        return Done(recording=index, kept=kept, noted=(call,))

    def keep(self, recording: Recording) -> int:
        """The index of a recording, which is added where there is no equal one."""
        kinds = tuple(map(type, recording.events))  # as plain tuples, `Free(0)` and `Run(0)` would be equal
        index = self._recording_index.setdefault((recording, kinds), len(self.recordings))
        if index == len(self.recordings):
            self.recordings.append(recording)
        return index

    def outlived(self, done: Done, held: Iterable[torch.Tensor] = ()) -> None:
        """From here on the pipeline is called again; note where in that call goes what the one before left.

        What is `held` elsewhere does not.
        """
        staying = {self.serial_of(tensor.untyped_storage()) for tensor in held}
        self.left = {serial: place for place, (_, serial) in enumerate(done.kept) if serial not in staying}
        self._gone = []

    def following(self, recording: Recording) -> Recording:
        """A course with the ends of what an earlier call of it left, as they were in the call that is under way.

        That call is dropped.  Where it did something else before, nobody knows those ends.
        """
        gone, self._gone, self.left = self._gone, [], {}
        known = _renumbered(self.drop(), anew=False)[0]
        events: list[Event] = list(recording.events)
        for place, end in reversed(gone):
            if known[:place] == recording.events[:place]:
                events.insert(place, end)
        return replace(recording, events=tuple(events))

    def drop(self) -> list[Event]:
        """End the innermost body and forget it; its events, for whoever wants to keep part of them."""
        return self._frames.pop().events

    def abandon(self) -> None:
        """Drop everything under way; storages still alive are no longer watched."""
        self._frames.clear()
        self._watched.clear()
        self.left.clear()

    def serial_of(self, storage: torch.UntypedStorage) -> int:
        """Serial of a watched storage, -1 for weights and other outsiders."""
        return self._watched.get(storage._cdata, (-1, None))[0]

    def knows(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage is watched, be it as an outsider."""
        return storage._cdata in self._watched

    def replay(self, recording: int, module: str, outputs: dict[int, torch.UntypedStorage]) -> None:
        """Note another call of a recorded body; `outputs` are fresh storages for its survivors."""
        kept = tuple((local, self._watch(storage)) for local, storage in sorted(outputs.items()))
        self._frames[-1].events.append(Call(recording, module, kept))

    def repeat(
        self,
        events: Iterable[Event],
        freed: dict[int, torch.UntypedStorage],
        made: dict[int, torch.UntypedStorage],
    ) -> None:
        """Note events of an earlier body again, under serials of their own.

        `freed` and `made` give, for serials of that time, the storages that end now and those that live on.
        """
        now: dict[int, int] = {}
        for serial, storage in freed.items():
            now[serial], _ = self._watched.pop(storage._cdata)

        def birth(serial: int) -> int:
            now[serial] = self._watch(made[serial]) if serial in made else self._fresh()
            return now[serial]

        for event in events:
            match event:
                case Alloc(serial, size):
                    self._frames[-1].events.append(Alloc(birth(serial), size))
                case Free(serial):
                    self._note_end(now[serial])
                case Call(recording, module, kept):
                    again = tuple((inner, birth(serial)) for inner, serial in kept)
                    self._frames[-1].events.append(Call(recording, module, again))
                case _:
                    self._frames[-1].events.append(event)

    def again(self, times: int) -> None:
        """Note the last call of a body that leaves nothing so many times more."""
        events = self._frames[-1].events
        if isinstance(events[-1], Call) and not events[-1].kept:
            events += [events[-1]] * times

    def ran(self, kernel: Kernel) -> None:
        """Note a kernel."""
        index = self._kernel_index.setdefault(kernel, len(self.kernels))
        if index == len(self.kernels):
            self.kernels.append(kernel)
        self._frames[-1].events.append(Run(index))

    def allocated(self, tensors: Iterable[torch.Tensor]) -> None:
        """Watch the storages of an operation's outputs that were not there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._watched and storage.nbytes():
                self._frames[-1].events.append(Alloc(self._watch(storage), storage.nbytes()))

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Weights and what else lives outside the recording; they are never counted."""
        for piece in (piece for tensor in tensors for piece in parts(tensor)):
            storage = piece.tensor.untyped_storage()
            self._watched[storage._cdata] = (-1, self._farewell(storage))

    def cast(self, component: str, weights: tuple[int, ...]) -> None:
        """Note that a component's weights changed size."""
        self._frames[-1].events.append(Cast(component, weights))

    def ending(self) -> None:
        """Note that the pipeline lets model offload take its components off, if it is its own code that does."""
        if self.depth == 1:
            self._frames[-1].events.append(Ending())

    def _watch(self, storage: torch.UntypedStorage) -> int:
        serial = self._fresh()
        self._watched[storage._cdata] = (serial, self._farewell(storage))
        return serial

    def _fresh(self) -> int:
        """The next serial, of a buffer born in the innermost body."""
        serial = self._serial
        self._serial += 1
        self._frames[-1].born.add(serial)
        return serial

    def _farewell(self, storage: torch.UntypedStorage) -> weakref.ref[torch.UntypedStorage]:
        """Forgets the storage in time: the next one may lie at its address."""
        key = storage._cdata
        return weakref.ref(storage, lambda _: self._died(key))

    def _died(self, key: int) -> None:
        serial, _ = self._watched.pop(key, (-1, None))
        if serial >= 0 and self._frames:
            self._note_end(serial)

    def _note_end(self, serial: int) -> None:
        if serial in self.left:
            self._gone.append((len(self._frames[0].events), Gone(self.left.pop(serial))))
            return
        self._frames[-1].events.append(Free(serial))
        for frame in reversed(self._frames):
            if serial in frame.born:
                frame.born.discard(serial)
                break
            frame.inlined = True


def _renumbered(events: list[Event], *, anew: bool) -> tuple[tuple[Event, ...], dict[int, int]]:
    """The events with buffers numbered from zero in order of birth, and each serial's new number.

    Unless each gets a number of its own `anew`, the lowest that is free is taken, so that what a course does at every
    step is the same events at every step.
    """
    local: dict[int, int] = {}
    free: list[int] = []
    fresh = count()
    renumbered: list[Event] = []

    def born(serial: int) -> int:
        local[serial] = heappop(free) if free else next(fresh)
        return local[serial]

    for event in events:
        match event:
            case Alloc(serial, size):
                renumbered.append(Alloc(born(serial), size))
            case Free(serial):
                if serial in local:  # what outlived an earlier call and dies in this one was never counted here
                    renumbered.append(Free(local[serial]))
                    if not anew:
                        heappush(free, local[serial])
            case Call(recording, module, kept):
                again = tuple((inner, born(serial)) for inner, serial in kept)
                renumbered.append(Call(recording, module, again))
            case _:
                renumbered.append(event)
    return tuple(renumbered), local
