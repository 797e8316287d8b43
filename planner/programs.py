"""Programs of one model and request: read from disk, or recorded when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from planner import store
from planner.collector import USUAL, collecting
from planner.profiles import PipelineProfile, content_key
from planner.program import Program, Variant
from planner.quiet import quiet
from planner.request import Request
from planner.techniques import DEFAULT
from planner.techniques.attention import remember_process
from planner.techniques.base import Option, Technique, Undo

if TYPE_CHECKING:
    from planner.ghost import Ghost
    from planner.trace import Tracer


Tell = Callable[[str], None]
"""Hears what is being done, in a few words, where that takes seconds."""


def silent(words: str) -> None:
    """Nobody listens."""


class Source(Protocol):
    """Where programs come from: a profile, or a live pipeline."""

    def key(self) -> str | None:
        """What identifies the pipeline across processes; None where nothing does."""
        ...

    def ghost(self) -> Ghost:
        """A ghost of the pipeline."""
        ...


class FromProfile:
    """A pipeline that exists as configuration only."""

    def __init__(self, profile: PipelineProfile, dtype: str | None) -> None:
        self._profile, self._dtype = profile, dtype

    def key(self) -> str | None:
        """By content: equal configurations have equal programs."""
        return f"{content_key(self._profile)}/{self._dtype}"

    def ghost(self) -> Ghost:
        """Built on the meta device from the real classes."""
        from planner import blueprint
        from planner.ghost import haunted

        return haunted(blueprint.build(self._profile, self._dtype))


class FromPipe:
    """A live pipeline, which may bear adapters, processors and hooks that no configuration tells of."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def key(self) -> str | None:
        """None: two live pipelines are never assumed to be equal."""
        return None

    def ghost(self) -> Ghost:
        """A copy without weights."""
        from planner.ghost import ghost_of

        return ghost_of(self._pipe)


class Workshop:
    """Where programs of one pipeline are recorded; the ghost is made when the first is wanted."""

    def __init__(self, source: Source, techniques: Sequence[Technique]) -> None:
        self.source, self.techniques = source, techniques
        self._tracer: Tracer | None = None
        self._return: Undo | None = None
        """Brings back the switches of the process as this pipeline left them."""

    def trace(self, request: Request, variant: Variant) -> Program:
        """The program of a variant.  Raises TraceFailed or BadRequest where the pipeline refuses the request."""
        with quiet(loading=True), collecting(USUAL), self._by_itself():
            self._tracer = self._tracer or self._made()
            return self._tracer.trace(request, variant)

    @contextmanager
    def _by_itself(self) -> Iterator[None]:
        """As in a process of its own: Kandinsky 5 sets an attention backend for whatever comes after it."""
        leave = remember_process()
        if self._return:
            self._return()
        try:
            yield
        finally:
            self._return = remember_process()
            leave()

    def _made(self) -> Tracer:
        from planner.settings import Settings
        from planner.trace import Tracer

        ghost = self.source.ghost()
        return Tracer(ghost, Settings(ghost, self.techniques), family="recorded")


class Programs:
    """The programs of one request by variant."""

    def __init__(
        self,
        source: Source,
        request: Request,
        folder: Path | None,
        techniques: Sequence[Technique] = DEFAULT,
        tell: Tell = silent,
        *,
        workshop: Workshop | None = None,
    ) -> None:
        self._workshop, self._tell = workshop or Workshop(source, techniques), tell
        self._request, self._folder = _shape(request), folder
        key = source.key()
        self.key = store.key_of(key, self._request.to_json()) if key and folder else None
        """What was recorded goes by this on disk; None where nothing is kept."""
        self._fresh = False
        self._known: dict[Variant, Program] = {}
        self._others: dict[Request, Programs] = {}
        self._under: dict[tuple[tuple[Option, ...], int], Program] = {}

    @cached_property
    def _stored(self) -> store.Stored:
        return store.load(self._folder, self.key) if self._folder and self.key else store.Stored(())

    def under(self, options: tuple[Option, ...], techniques: Mapping[str, Technique], calls: int = 1) -> Program:
        """The program with these options, written once for all cards.  Techniques of one name write alike.

        With several `calls` its course is that of as many, one after the other.
        """
        if (options, calls) not in self._under:
            variant = Variant()
            for option in options:
                variant = techniques[option.technique].variant(variant, option)
            program = self.get(variant).repeated(calls)
            for option in options:
                program = techniques[option.technique].rewrite(program, option)
            self._under[options, calls] = program
        return self._under[options, calls]

    def get(self, variant: Variant) -> Program:
        """The program of a variant.  Raises TraceFailed or BadRequest where the pipeline refuses the request."""
        if variant not in self._known:
            made = self._stored.program(variant)
            if made is None:
                self._tell(f"recording {_described(self._request, variant)}")
                made = self._workshop.trace(self._request, variant)
                self._fresh = True
            self._known[variant] = made
        return self._known[variant]

    def resized(self, request: Request) -> Programs:
        """The programs of another request, recorded on the same ghost and kept with these."""
        if request not in self._others:
            source, techniques = self._workshop.source, self._workshop.techniques
            self._others[request] = Programs(
                source, request, self._folder, techniques, self._tell, workshop=self._workshop
            )
        return self._others[request]

    def keep(self) -> None:
        """Write what was recorded to disk, where programs are kept at all.

        Not what was recorded under techniques of others: nothing says when their code changes.
        """
        if self._fresh and self._folder and self.key:
            stored = {variant: self._stored.program(variant) for variant in self._stored.variants}
            known = {variant: made for variant, made in stored.items() if made} | self._known
            own = {t.name for t in self._workshop.techniques if type(t).__module__.startswith("planner.")}
            lasting = (p for p in known.values() if {s.technique for s in p.variant.settings} <= own)
            store.save(self._folder, self.key, tuple(lasting))
            self._fresh = False
        for other in self._others.values():
            other.keep()


def _shape(request: Request) -> Request:
    """What of a request shapes a program; budgets and limits do not."""
    plain = Request()
    free = replace(request, calls=1, budget=plain.budget, fidelity=plain.fidelity, dtype=None)
    return replace(free, host_ram=None, disk=None, use=(), without=(), plain=False)


def _described(request: Request, variant: Variant) -> str:
    """A recording in a few words: `3840×2224, 2 images, tiles of 512`."""
    counts = ((request.frames or 0, "frames"), (request.prompts, "prompts"), (request.images, "images"))
    words = [f"{request.width}×{request.height}" if request.width and request.height else "the call"]
    words += [f"{count} {name}" for count, name in counts if count > 1]
    words += [f"tiles of {variant.tile}"] if variant.tile else []
    words += [f"{setting.technique} {setting.value}".strip() for setting in variant.settings]
    return ", ".join(words)
