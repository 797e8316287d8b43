"""Verify: a run held against its promise, and what is learned from it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from planner import lessons
from planner.cost import BEFORE
from planner.lessons import Key
from planner.plan import Plan
from planner.probe import probe_one
from planner.program import METHODS
from planner.techniques.live import in_reverse, modules, remember
from planner.units import format_bytes, format_seconds

SHORT = 0.01
"""Seconds below which a phase says nothing about the pace of its kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A stretch of the run, bytes and seconds; bytes are 0 where there was no card."""

    name: str
    allocated: int = 0
    reserved: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A promise and what the run showed."""

    derived: ClassVar = ("ratio",)
    what: str
    """`allocated`, `reserved`, `context` or `seconds` of the whole call, `vae.decode, allocated` of a phase."""
    unit: Literal["bytes", "seconds"]
    """Of both figures."""
    promised: float
    """In bytes or seconds, as `unit` says."""
    measured: float
    """In bytes or seconds, as `unit` says."""

    @property
    def ratio(self) -> float | None:
        """Measured ÷ promised; None where nothing was promised."""
        return self.measured / self.promised if self.promised else None

    def told(self) -> tuple[str, str, str, str]:
        """What people read."""
        figures = (self.promised, self.measured)
        promised, measured = (
            format_bytes(round(figure)) if self.unit == "bytes" else format_seconds(figure) for figure in figures
        )
        return self.what, promised, measured, "" if self.ratio is None else f"×{self.ratio:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A run beside its plan."""

    plan: Plan
    whole: Seen
    phases: tuple[Seen, ...]
    card: int
    """Bytes of the card in use after the run beyond torch's, by NVML; 0 where nobody could say."""

    @property
    def held(self) -> bool:
        """Whether the run stayed within its budget."""
        return self.whole.reserved + self.card <= self.plan.budget

    def rows(self) -> Iterator[Row]:
        """What was promised and can be compared, whole first."""
        promise, whole = self.plan.promise, self.whole
        pairs = (("allocated", promise.allocated, whole.allocated), ("reserved", promise.reserved, whole.reserved))
        for name, promised, measured in (*pairs, ("context", promise.context, self.card)):
            if measured:
                yield Row(what=name, unit="bytes", promised=promised, measured=measured)
        yield Row(what="seconds", unit="seconds", promised=promise.seconds, measured=whole.seconds)
        measured_phases = {phase.name: phase for phase in self.phases}
        for phase in promise.phases:
            if (seen := measured_phases.get(phase.name)) is not None:
                if seen.allocated:
                    what = f"{phase.name}, allocated"
                    yield Row(what=what, unit="bytes", promised=phase.peak, measured=seen.allocated)
                if phase.seconds:
                    what = f"{phase.name}, seconds"
                    yield Row(what=what, unit="seconds", promised=phase.seconds, measured=seen.seconds)

    def __str__(self) -> str:
        rows = [("", "promised", "measured", ""), *(row.told() for row in self.rows())]
        wide = [max(len(row[place]) for row in rows) for place in range(4)]
        return "\n".join(
            f"{what:<{wide[0]}}  {promised:>{wide[1]}}  {measured:>{wide[2]}}  {ratio:>{wide[3]}}".rstrip()
            for what, promised, measured, ratio in rows
        )


def verify(plan: Plan, run: Callable[[], object], pipe: Any = None, *, learn: bool = True) -> Verdict:
    """Run once and compare.  With the pipeline, phases are told apart, and lessons kept if `learn`."""
    listener = Listener(cuda=_on_card())
    with ExitStack() as stack:
        if pipe is not None:
            stack.enter_context(_heard(pipe, listener))
        listener.begin()
        run()
        whole = listener.end()
    verdict = Verdict(plan=plan, whole=whole, phases=tuple(listener.phases.values()), card=_outside(plan))
    if pipe is not None and learn:
        lessons.write(lessons.read().learned(_learned(verdict, pipe)))
    return verdict


class Listener:
    """Follows a run from phase to phase: one lasts until another component is called."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self.phases: dict[str, Seen] = {}
        self._now, self._depth, self._since, self._started = BEFORE, 0, 0.0, 0.0

    def begin(self) -> None:
        """The run begins."""
        self._settle()
        self._started = self._since = time.perf_counter()

    def end(self) -> Seen:
        """The run is over; the whole of it."""
        self._close()
        seen = self.phases.values()
        return Seen(
            name="whole", allocated=max(s.allocated for s in seen), reserved=max(s.reserved for s in seen),
            seconds=time.perf_counter() - self._started,
        )  # fmt: skip

    def enter(self, name: str, part: Any) -> None:
        """A component is called; inside another one it belongs to that."""
        self._depth += 1
        if self._depth == 1 and name != self._now:
            dismiss(part)
            self._close()
            self._now = name

    def leave(self) -> None:
        """The call is over."""
        self._depth -= 1

    def _close(self) -> None:
        allocated, reserved = self._settle()
        now, before = time.perf_counter(), self.phases.get(self._now, Seen(name=self._now))
        self.phases[self._now] = Seen(
            name=self._now, allocated=max(before.allocated, allocated), reserved=max(before.reserved, reserved),
            seconds=before.seconds + now - self._since,
        )  # fmt: skip
        self._since = now

    def _settle(self) -> tuple[int, int]:
        """Wait for the card; the peaks since last time, in bytes."""
        if not self._cuda:
            return 0, 0
        import torch

        torch.cuda.synchronize()
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        return peaks


def dismiss(part: Any) -> None:
    """Send away whom a component relieves, as its hook of accelerate would now: with that the phase before ends.

    The hook finds nobody there and goes on to bring the component.
    """
    relieved = getattr(getattr(part, "_hf_hook", None), "prev_module_hook", None)
    if relieved is None or next(relieved.model.parameters()).device.type == "cpu":
        return
    from accelerate.utils.memory import clear_device_cache

    relieved.offload()
    clear_device_cache()


@contextmanager
def _heard(pipe: Any, listener: Listener) -> Iterator[None]:
    """Every call of a component is told to the listener."""
    components = modules(pipe)
    undo = in_reverse(remember(part, "forward", *METHODS) for part in components.values())
    for name, part in components.items():
        part.forward = _told(listener, name, part, part.forward)
        for method in METHODS:
            if callable(getattr(part, method, None)):
                setattr(part, method, _told(listener, f"{name}.{method}", part, getattr(part, method)))
    try:
        yield
    finally:
        undo()


def _told(listener: Listener, name: str, part: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        listener.enter(name, part)
        try:
            return method(*args, **kwargs)
        finally:
            listener.leave()

    return called


def _learned(verdict: Verdict, pipe: Any) -> dict[Key, float]:
    """Ratios by class, dtype, layout and card; of a class that works in several phases, its largest phase's."""
    promised = {phase.name: phase for phase in verdict.plan.promise.phases}
    components, found = modules(pipe), dict[Key, float]()
    for seen in sorted(verdict.phases, key=lambda seen: seen.seconds):
        part, phase = components.get(seen.name.partition(".")[0]), promised.get(seen.name)
        if part is None or phase is None:
            continue
        kind = (*_kind(part), verdict.plan.device.name)
        if seen.allocated:
            found[(*kind, "memory")] = seen.allocated / phase.peak * phase.grown
        if min(seen.seconds, phase.seconds) > SHORT:
            found[(*kind, "seconds")] = seen.seconds / phase.seconds * phase.slower
    return found


def _kind(part: Any) -> tuple[str, str, str]:
    """Class, dtype of most weights, and layout, as `lessons.kind_of` tells them of a program."""
    import torch

    sizes: dict[Any, int] = {}
    for weight in part.parameters():
        sizes[weight.dtype] = sizes.get(weight.dtype, 0) + weight.numel()
    dtype = str(max(sizes, key=lambda each: sizes[each], default=torch.float32)).removeprefix("torch.")
    kernels = (p for p in part.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[-1] > 1)
    last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels)
    return type(part).__name__, dtype, "channels_last" if last else "contiguous"


def _on_card() -> bool:
    import torch

    return torch.cuda.is_available()


def _outside(plan: Plan) -> int:
    """Bytes in use beyond torch's, as far as NVML knows: the context, and whatever other processes hold."""
    if not _on_card():
        return 0
    import torch

    now = probe_one(plan.device.uuid or 0)
    return max(now.total - now.free - torch.cuda.memory_reserved(), 0)
