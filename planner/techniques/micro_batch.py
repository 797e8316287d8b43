"""Micro-batches: the denoiser takes the rows of a batch, images and halves of guidance, a few at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed
from planner.program import Component, Program, Setting, Variant, sample_of
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember
from planner.techniques.tracing import is_denoiser

BY_ROW = ("img_shapes", "txt_seq_lens")
"""Arguments that are lists of plain numbers with one entry per row (diffusers 0.42.1)."""
BY_FRAME = "encoder_hidden_states"
"""Argument that has an entry per frame where the pipeline repeats the prompt for each (AnimateDiff)."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Run each step's batch through the denoiser in pieces.  Exact: no row knows of another."""

    name: str = "micro_batch"
    scope: Scope = "denoiser"
    needs: str = "a denoiser that is called with several rows which know nothing of each other"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        if program.variant.remembers:  # each part would take the others' states for its own
            return ()
        able = [component for component in program.components if _can(component)]
        most = max((component.rows for component in able), default=1)
        return tuple(
            Option(technique=self.name, value=rows, lean=True, calls=tuple(_calls(able, rows)))
            for rows in halvings(most)
        )

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:
        denoisers = [part for name, part in modules(pipe).items() if is_denoiser(name)]
        if not denoisers:
            raise ApplyFailed(f"{type(pipe).__name__} has 0 denoisers to call in pieces; leave {self.name} out.")
        return in_reverse([micro_batched(part, int(option.value)) for part in denoisers])


def micro_batched(module: Any, rows: int) -> Undo:
    """Have `module` take at most `rows` rows of a batch at a time and join what it returns.

    Each piece is a call of its own, hooks included, whether they were there before or come later.
    """
    undo, whole = remember(module, "_call_impl"), module._call_impl

    @functools.wraps(whole)
    def piecewise(*args: Any, **kwargs: Any) -> Any:
        sample = sample_of(args, kwargs)
        total = len(sample)
        if total <= rows:
            return whole(*args, **kwargs)
        pieces = (
            Rows(start, min(start + rows, total), total, isinstance(sample, list), _frames(sample))
            for start in range(0, total, rows)
        )
        return joined([whole(*map(piece.of, args), **piece.named(kwargs)) for piece in pieces])

    module._call_impl = piecewise
    return undo


def halvings(rows: int) -> Iterator[int]:
    """Half as many rows, rounded up, and again, down to one."""
    while rows > 1:
        rows = -(-rows // 2)
        yield rows


def _can(component: Component) -> bool:
    return {"denoiser", "rows_apart"} <= component.traits and component.rows > 1


def _calls(able: Sequence[Component], rows: int) -> Iterator[str]:
    """The planner's own function, for diffusers has none."""
    yield "from planner.techniques.micro_batch import micro_batched"
    yield from (f"micro_batched(pipe.{component.name}, rows={rows})" for component in able)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `start` to `stop` of `total`; `listed` where the batch itself is a list with an entry per image."""

    start: int
    stop: int
    total: int
    listed: bool
    frames: int = 1
    """Of each row."""

    def of(self, value: Any) -> Any:
        """These rows of whatever has one per row, in nests of dictionaries and sequences too; the rest as it is."""
        import torch

        if isinstance(value, torch.Tensor):
            return value[self.start : self.stop] if value.dim() and len(value) == self.total else value
        if self.listed and isinstance(value, list) and len(value) == self.total:
            return value[self.start : self.stop]
        if isinstance(value, dict):
            return self.named(value)
        return type(value)(map(self.of, value)) if type(value) in (list, tuple) else value

    def named(self, values: dict[str, Any]) -> dict[str, Any]:
        """The same for named values, some of which are lists of numbers by row."""
        return {
            name: value[self.start : self.stop] if name in BY_ROW and _is_long(value, self.total) else self.of(value)
            for name, value in values.items()
        } | {
            name: value[self.start * self.frames : self.stop * self.frames]
            for name, value in values.items()
            if name == BY_FRAME
            and self.frames > 1
            and hasattr(value, "shape")
            and len(value) == self.total * self.frames
        }


def _frames(sample: Any) -> int:
    """Frames of a batch of videos, whose third axis they are; of anything else 1."""
    return int(sample.shape[2]) if not isinstance(sample, list) and sample.dim() == 5 else 1


def _is_long(value: Any, total: int) -> bool:
    return isinstance(value, list) and len(value) == total


def joined(outputs: Sequence[Any]) -> Any:
    """What several calls returned as what one call would have, field by field."""
    import torch

    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs)) if first.dim() else first
    if isinstance(first, list) and all(isinstance(entry, torch.Tensor) for entry in first):
        return [entry for output in outputs for entry in output]
    if isinstance(first, tuple):
        return tuple(joined(entries) for entries in zip(*outputs, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        return type(first)(**{f.name: joined([getattr(o, f.name) for o in outputs]) for f in fields(first)})
    return first
