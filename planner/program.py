"""The program: what one pipeline call does to memory and to the card, as plain values.  No torch here.

A `Program` is the recorded course of one call.  It is a tree: the course calls components, components call blocks,
blocks call leaves, and each distinct body is recorded once and called from everywhere.  Sizes are bytes as the
code asked for them; rounding, scratch memory and time are the business of the cost model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

from planner.events import MARKS, Again, Call, Drop, Empty, Enter, Event, Exit, Load, Run
from planner.kernels import Kernel


@dataclass(frozen=True, slots=True)
class Recording:
    """One body.  `own` holds the bytes of each weight that the module itself has, not its children's, and that
    sequential offload moves.
    """

    name: str
    """Class of the module, or name of the method."""
    own: tuple[int, ...]
    events: tuple[Event, ...]
    _landmarks: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)
    _work: tuple[Event, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def landmarks(self) -> tuple[int, ...]:
        """Places of the events that say who works: modules called, entered and left, and casts."""
        if self._landmarks is None:
            found = (n for n, e in enumerate(self.events) if type(e) in MARKS and (type(e) is not Call or e.module))
            object.__setattr__(self, "_landmarks", tuple(found))
        return self._landmarks or ()

    @property
    def work(self) -> tuple[Event, ...]:
        """What runs and for whom: modules entered and left, and between these each kernel and each body once."""
        if self._work is None:
            object.__setattr__(self, "_work", tuple(_once(self.events)))
        return self._work or ()


def _once(events: Iterable[Event]) -> Iterator[Event]:
    seen: set[int | tuple[int, str]] = set()
    for event in events:
        if isinstance(event, (Enter, Exit)):
            seen.clear()
            yield event
        elif isinstance(event, (Run, Call)):
            what = event.kernel if isinstance(event, Run) else (event.recording, event.module)
            if what not in seen:
                seen.add(what)
                yield event


DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""Names of components that are called at every step."""
METHODS = ("encode", "decode", "get_text_features", "get_image_features")
"""Ways other than calling it in which a pipeline uses a component; phases bear their names."""
SAMPLES = ("hidden_states", "sample", "x")
"""Names under which denoisers take what they denoise, where it is not their first argument."""


def sample_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a denoiser's call is about: a batch, or a list with one entry per image; None where nothing was given."""
    named = (kwargs[name] for name in SAMPLES if name in kwargs)
    return args[0] if args else next(chain(named, kwargs.values()), None)


STREAMED = 2**32
"""Added to a recording's index: the same body with its weights streamed."""


def calls(events: Iterable[Event]) -> Iterator[tuple[Event, str]]:
    """Each event of a course with the component call that begins there, or nothing.

    What a body calls that is written into the course is none of the pipeline's own calls.
    """
    depth = 0
    for event in events:
        yield event, event.module if isinstance(event, (Call, Enter)) and not depth else ""
        depth += isinstance(event, Enter) - isinstance(event, Exit)


def streamed(recording: Recording, stay: frozenset[str] = frozenset()) -> tuple[Event, ...]:
    """The body under accelerate's hooks: a module's own weights arrive before it and are dropped after it.

    So are the bodies it calls, but for the components that `stay`.
    """
    events: list[Event] = [Load("", recording.own), Empty()] if recording.own else []
    inlined: list[bool] = []
    for event in recording.events:
        if isinstance(event, Call) and event.module.partition(".")[0] not in stay:
            events.append(event._replace(recording=event.recording + STREAMED))
        else:
            events.append(event)
        if isinstance(event, Enter):
            own = () if event.module.partition(".")[0] in stay else event.own
            inlined.append(bool(own))
            events += [Load("", own), Empty()] if own else []
        elif isinstance(event, Exit) and inlined.pop():
            events.append(Drop("", copied=False))
    return (*events, Drop("", copied=False)) if recording.own else tuple(events)


class Setting(NamedTuple):
    """An option that changes what is computed; the technique's own `apply` configures the ghost it is recorded on."""

    technique: str
    value: str | int
    scope: str
    """`call`, `denoiser` or `autoencoder`: whose calls are recorded anew."""


CACHES = "step_cache"
"""The technique under which the denoiser remembers earlier calls."""
PASSING = frozenset({"mag", "taylorseer_lite"})
"""Those of its values, up to the colon, under which whole blocks are passed over."""
PLACED = 2**33
"""Added to a body's place among `Program.placed`: a body written anew for where its weights are."""


class Unit(NamedTuple):
    """A module whose weights travel together when its component is streamed."""

    paths: tuple[str, ...]
    """Relative to the component: `transformer_blocks.7`; more than one where modules share all their weights."""
    places: tuple[int, ...]
    """Which of the component's weights are its parameters."""

    @property
    def path(self) -> str:
        """Its name."""
        return self.paths[0]


class Stack(NamedTuple):
    """A module as diffusers' group offload by blocks sees it."""

    path: str
    """Relative to the component; empty for the component itself."""
    lists: tuple[tuple[Unit, ...], ...]
    """Its lists of blocks, each block with the places of its parameters and buffers."""
    rest: tuple[int, ...]
    """Places of what else it has, which travels as a whole when its `forward` is called."""
    tables: tuple[int, ...] = ()
    """Those of its children's buffers, which diffusers 0.42.1 moves with the child and by themselves.  The child gets
    a new tensor when it leaves, so from the second turn on there are two."""
    lasting: tuple[int, ...] = ()
    """Those of its blocks' buffers, which a stream brings from memory and diffusers 0.42.1 never takes back: each stays
    until its next turn has brought it anew."""


@dataclass(frozen=True, slots=True)
class Component:
    """A module of the pipeline, before the call."""

    name: str
    kind: str
    """Class name."""
    dtype: str
    weights: tuple[int, ...]
    """Bytes of every parameter and buffer, tied ones once, in the order in which they move."""
    anchored: tuple[int, ...] = ()
    """Bytes of those buffers that stay on the card when the parameters are offloaded one by one."""
    traits: frozenset[str] = frozenset()
    """What it is and can do: denoiser, autoencoder, text_encoder; tiling, slicing, decode_chunks, attention_slicing,
    attention_backend, processors, conv2d, repeated_blocks, layerwise_casting, fuses_qkv; first_block, pyramid, faster,
    faster_halves, taylorseer, taylorseer_lite, mag: caches that it can have in its pipeline; once_a_step: it is called
    so; rows_apart: no row of a batch knows of another; weight_norm: a hook before `forward`
    makes weights; lends_weights: a module uses weights of layers that it does not call; lists_of_lists: its blocks are
    lists, which nobody calls; travels: its units are streamed."""
    tile: int = 0
    """Edge in pixels of an autoencoder's default tile, 0 where it does not tile."""
    factor: int = 1
    """Pixels per latent along an edge."""
    rows: int = 0
    """Rows of the largest batch it is called with, both halves of guidance counted; 0 where it is not called so."""
    units: tuple[Unit, ...] = ()
    """The modules it can be streamed by, in the order in which it holds them."""
    stacks: tuple[Stack, ...] = ()
    """What group offload by blocks makes of it; none where diffusers offloads it by no groups."""
    tables: tuple[Unit, ...] = ()
    """Modules with buffers of their own, and the places of those that are `anchored`; by leaves these go along."""
    lasting: tuple[str, ...] = ()
    """Those of them that are single layers: a stream by leaves brings their buffers from memory, and diffusers 0.42.1
    never takes them back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The choices that change shapes and therefore need a trace of their own."""

    dtype: str = ""
    """Dtype all components are cast to; empty: as they are."""
    channels_last: frozenset[str] = frozenset()
    """Components whose rank-4 weights are channels-last."""
    sliced: bool = False
    tile: int = 0
    """Edge of the autoencoder's tiles in pixels; 0: the pipeline's own setting."""
    splits: int = 1
    """Calls into which the images are split."""
    settings: tuple[Setting, ...] = ()
    """Options of further techniques, in order of applying."""

    def under(self, setting: Setting) -> Variant:
        """The variant with one more option."""
        return replace(self, settings=(*self.settings, setting))

    @property
    def remembers(self) -> bool:
        """Whether the denoiser keeps something from call to call, so that it may be neither cut nor traced."""
        return self.setting(CACHES) is not None

    @property
    def passes_blocks(self) -> bool:
        """Whether the denoiser passes blocks over, whose hooks act all the same: none of them may move weights."""
        cache = self.setting(CACHES)
        return cache is not None and str(cache.value).partition(":")[0] in PASSING

    def setting(self, technique: str) -> Setting | None:
        """The option of a technique, None where it stays off."""
        return next((setting for setting in self.settings if setting.technique == technique), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One pipeline call.  `recordings[course]` is the outermost body; recordings only call earlier ones."""

    pipeline: str
    variant: Variant
    components: tuple[Component, ...]
    chain: tuple[str, ...]
    """`model_cpu_offload_seq`, in order; empty where the pipeline has none."""
    excluded: frozenset[str]
    """Components that diffusers' offloading leaves on the card."""
    tracing: Literal["none", "jit", "compile", "regional"] = "none"
    """How the denoiser runs: kernel by kernel from Python, traced, compiled, or compiled block by block."""
    kernels: tuple[Kernel, ...] = field(repr=False)
    recordings: tuple[Recording, ...] = field(repr=False)
    course: int
    family: str = ""
    """Programs of one family share their table of bodies: equal index, equal effect."""
    placed: tuple[Recording, ...] = field(default=(), repr=False)
    """Bodies written anew for where weights are; `PLACED` and their place here is their index."""
    anew: dict[object, object] = field(default_factory=dict, repr=False, compare=False)
    """What was made of bodies, by all it was made from: programs of one table share it, so that what a body written
    anew costs is worked out once, too."""
    waiting: int = 0
    """Bytes of weights that keep a place in host memory while the pipeline is configured, and of work done there."""

    @property
    def events(self) -> tuple[Event, ...]:
        """Those of the outermost body."""
        return self.recordings[self.course].events

    @property
    def landmarks(self) -> Iterator[Event]:
        """Those of the outermost body that say who works."""
        events = self.events
        return (events[place] for place in self.recordings[self.course].landmarks)

    def component(self, name: str) -> Component:
        """The component called `name`; KeyError if there is none."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)

    def body(self, index: int) -> tuple[Event, ...]:
        """The events of a body; from `STREAMED` on, those of the body that streams its weights."""
        if index >= PLACED:
            return self.placed[index - PLACED].events
        return self.recordings[index].events if index < STREAMED else streamed(self.recordings[index - STREAMED])

    def repeated(self, times: int) -> Program:
        """The same call made so many times; buffers that outlive one are born again in the next."""
        return self.with_course(self.events + (Again(), *self.events) * (times - 1))

    @property
    def runs(self) -> Iterator[int]:
        """The kernels of each body that is called from the outermost, which each is looked into once."""
        reached, waiting = {self.course}, [self.recordings[self.course]]
        while waiting:
            for event in waiting.pop().work:
                if isinstance(event, Run):
                    yield event.kernel
                elif isinstance(event, Call) and event.recording not in reached:
                    reached.add(event.recording)
                    waiting.append(self._recording(event.recording))

    def _recording(self, index: int) -> Recording:
        """A body as it was recorded or placed; one that streams its weights runs what it would run without."""
        return self.placed[index - PLACED] if index >= PLACED else self.recordings[index % STREAMED]

    def with_course(self, events: tuple[Event, ...]) -> Program:
        """The same program with another outermost body."""
        body = replace(self.recordings[self.course], events=events)
        recordings = (*self.recordings[: self.course], body, *self.recordings[self.course + 1 :])
        return replace(self, recordings=recordings)
