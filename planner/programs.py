"""Programs of one model and request: read from disk, or recorded when first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from planner import store
from planner.profiles import PipelineProfile, content_key
from planner.program import Program, Variant
from planner.request import Request
from planner.techniques import DEFAULT
from planner.techniques.base import Technique

if TYPE_CHECKING:
    from planner.ghost import Ghost
    from planner.trace import Tracer


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


class Programs:
    """The programs of one request by variant."""

    def __init__(
        self, source: Source, request: Request, folder: Path | None, techniques: Sequence[Technique] = DEFAULT
    ) -> None:
        self._techniques = techniques
        self._source, self._request, self._folder = source, _shape(request), folder
        key = source.key()
        self._key = store.key_of(key, self._request.to_json()) if key and folder else None
        found = store.load(folder, self._key) if folder and self._key else ()
        self._known = {program.variant: program for program in found}
        self._fresh = False
        self._tracer: Tracer | None = None

    def get(self, variant: Variant) -> Program:
        """The program of a variant.  Raises TraceFailed or BadRequest where the pipeline refuses the request."""
        if variant not in self._known:
            self._tracer = self._tracer or self._made_tracer()
            self._known[variant] = self._tracer.trace(self._request, variant)
            self._fresh = True
        return self._known[variant]

    def resized(self, request: Request) -> Programs:
        """The programs of another request on the same ghost; they are not kept."""
        other = Programs(self._source, request, None, self._techniques)
        other._tracer = self._tracer = self._tracer or self._made_tracer()
        return other

    def keep(self) -> None:
        """Write what was recorded to disk, where programs are kept at all."""
        if self._fresh and self._folder and self._key:
            store.save(self._folder, self._key, tuple(self._known.values()))
            self._fresh = False

    def _made_tracer(self) -> Tracer:
        from planner.settings import Settings
        from planner.trace import Tracer

        ghost = self._source.ghost()
        return Tracer(ghost, Settings(ghost, self._techniques), family=f"recorded/{len(self._known)}")


def _shape(request: Request) -> Request:
    """What of a request shapes a program; budgets and limits do not."""
    plain = Request()
    return replace(request, calls=1, budget=plain.budget, host_ram=None, fidelity=plain.fidelity, dtype=None)
