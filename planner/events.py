"""Events of a program: what one body does, in order.  Sizes are bytes as the code asked for them.  No torch here."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Alloc(NamedTuple):
    """A tensor comes to life; `size` is its storage in bytes."""

    buffer: int
    size: int


class Free(NamedTuple):
    """The last reference to a tensor's storage goes."""

    buffer: int


class Run(NamedTuple):
    """A kernel runs; `kernel` indexes `Program.kernels`.  Its outputs are already allocated."""

    kernel: int


class Call(NamedTuple):
    """A recorded body runs here.  `kept` maps its surviving buffers to buffers of the caller."""

    recording: int
    module: str
    """Name relative to the caller: `text_encoder`, `vae.decode`, `down_blocks.0`, `to_q`; empty for helpers."""
    kept: tuple[tuple[int, int], ...]


class Enter(NamedTuple):
    """A module begins whose body had to be written into the caller because it changes outer state."""

    module: str
    own: tuple[int, ...]


class Exit(NamedTuple):
    """The module entered last ends."""


class Cast(NamedTuple):
    """A component's weights change dtype on whatever device they are; sizes in bytes, tensor by tensor."""

    component: str
    weights: tuple[int, ...]


Source = Literal["pinned", "pageable", "disk"]
"""Where weights wait: in page-locked or ordinary host memory, or in a file."""


class Load(NamedTuple):
    """Weights arrive on the card, tensor by tensor, and the kernels wait for them."""

    key: str
    weights: tuple[int, ...]
    stream: int = 0
    """Whose room they take; 0 is the stream of the kernels."""
    source: Source = "pageable"


class Drop(NamedTuple):
    """Weights loaded under `key` leave the card; `copied` when their bytes travel back to the host."""

    key: str
    copied: bool
    late: bool = False
    """Their room is of use only when the kernels launched so far have run (`record_stream`)."""
    handed: bool = False
    """They stay where they are: the next `Stay` of that key, in whatever body, takes their room over."""
    older: bool = False
    """Of several under that key, those that came first; else those that came last."""


class Empty(NamedTuple):
    """The allocator gives what it caches back to the driver, as accelerate asks after every move."""


class Fetch(NamedTuple):
    """Weights set out for the card, beside the kernels; their room is taken at once.

    From elsewhere than pinned memory the host first brings them there.
    """

    key: str
    weights: tuple[int, ...]
    stream: int = 0
    """Whose room they take; 0 is the stream of the kernels."""
    source: Source = "pinned"


class Stay(NamedTuple):
    """Weights that an earlier call left on the card have their room here; nothing travels."""

    key: str
    weights: tuple[int, ...]
    stream: int = 0
    """Whose room they have; 0 is the stream of the kernels."""


class Await(NamedTuple):
    """Kernels from here on need what was fetched under `key`."""

    key: str


class Join(NamedTuple):
    """The host waits until all kernels have run, as diffusers does before it lets streamed weights go."""


class Aside(NamedTuple):
    """The host computes while the card waits: floating-point operations, and bytes it sends to the card then."""

    flops: int
    sent: int


class Again(NamedTuple):
    """The pipeline has returned and is called once more, as for the next part of a batch that is split."""


class Ending(NamedTuple):
    """The pipeline has what it returns: model offload takes its components off, while it holds what it held."""


class Gone(NamedTuple):
    """A tensor that outlived the call before goes: schedulers let go of what they hold when their timesteps are set."""

    place: int
    """Which one, in the order in which they came to life."""


MARKS = frozenset((Call, Enter, Exit, Cast, Again))
"""Kinds of events that are landmarks of a body, where a call names its module."""

Event = (
    Alloc
    | Free
    | Run
    | Call
    | Enter
    | Exit
    | Cast
    | Load
    | Drop
    | Empty
    | Fetch
    | Stay
    | Await
    | Join
    | Aside
    | Again
    | Ending
    | Gone
)
