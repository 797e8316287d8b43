"""What a technique is.  One small file each; `planner.techniques.DEFAULT` lists them in order of applying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from planner.device import Device
from planner.program import Program, Variant
from planner.request import Fidelity, Request

OURS = "from planner."
"""How code begins that needs this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting of one technique.  Technique, component and value identify it; `value` survives JSON."""

    technique: str
    """Its name."""
    value: str | int = ""
    """The setting: a name, or a number such as a tile's edge in pixels; empty where there is only one."""
    component: str = ""
    """The component it concerns, where a technique chooses for each component by itself."""
    fidelity: Fidelity = Fidelity.EXACT
    """How far it changes the result."""
    neutral: bool = False
    """What happens when nothing is chosen; it counts as no change."""
    lean: bool = False
    """It saves memory and never time: tried only where nothing of its fidelity fits without."""
    calls: tuple[str, ...] = ()
    """The diffusers code that does the same, statement by statement; empty where nothing is done."""

    def __str__(self) -> str:
        """In words; the component it concerns comes before its value: `streaming=transformer:10/62`."""
        value = f"{self.component}:{self.value}" if self.component else str(self.value)
        return f"{self.technique}={value}" if value else self.technique

    @property
    def plain(self) -> bool:
        """Whether that code does without us."""
        return not any(call.startswith(OURS) for call in self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Where an option keeps a component's weights, known before it is written into a program; bytes."""

    kept: int
    """On the card throughout."""
    aboard: tuple[int, ...]
    """Of each unit that arrives when the component is first called, and stays."""
    until: str
    """The component that drives these out; empty where none does."""
    away: tuple[tuple[str, int], ...]
    """Of each unit that is fetched at every pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Haul:
    """A component whose modules are brought one by one, each whenever it is called."""

    component: str
    beside: bool
    """Whether each sets out from pinned memory while the one before it works; else the host waits for it."""


Scope = Literal["call", "component", "denoiser", "autoencoder"]
Undo = Callable[[], None]


class Technique(Protocol):
    """One way to trade memory, time or fidelity.

    A technique offers only what the program and the device allow; a clash with an earlier technique shows as an
    option that is not offered.  It may have `needs`, words that end the sentence "it needs …": the reason given to
    someone who names it where nothing is offered; or a method `lacks` of a value, program and device, for words that
    end "it …" where one value is not offered.  One that is offered only to those who name it may say what it
    `relieves`, traits of components: it is then named where nothing fits for want of room there.  One that can do with
    next to no host memory may have a method `spared`, which gives the technique that offers that, too: it is asked
    where nothing fits and host memory cannot hold the weights.  One that writes files may have a method `housed`, which
    gives the technique that keeps within so many bytes of disk.
    """

    @property
    def name(self) -> str:
        """Identifier in plans and on the command line."""
        ...

    @property
    def scope(self) -> Scope:
        """What it changes: the whole `call`, where the weights of one `component` are, or only the phases of the
        `denoiser` or the `autoencoder`.
        """
        ...

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:
        """What can be chosen here, without the choice of doing nothing."""
        ...

    def variant(self, variant: Variant, option: Option) -> Variant:
        """The trace the option needs; `variant` itself when it changes no shapes."""
        ...

    def rewrite(self, program: Program, option: Option) -> Program:
        """The program under the option; `program` itself when the trace already shows it."""
        ...

    def apply(self, pipe: Any, option: Option) -> Undo:
        """Configure a live pipeline through public API and return what takes it back, exactly."""
        ...


@runtime_checkable
class Outlining(Protocol):
    """A technique of scope `component` that can say what its options move without writing them into the program."""

    def outlines(self, program: Program, options: Sequence[Option]) -> Sequence[Outline | None]:
        """Of options for one component; None where only the program under the option tells."""
        ...


@runtime_checkable
class Hauling(Protocol):
    """A technique of scope `call` that can say what its options bring without writing them into the program."""

    def hauls(self, program: Program, option: Option) -> Sequence[Haul] | None:
        """What travels; None where only the program under the option tells."""
        ...


@runtime_checkable
class Housed(Protocol):
    """A technique that writes files."""

    def housed(self, disk: int | None, *, here: bool) -> Technique:
        """The same within so many bytes of disk; where none are named, within what is free if it is `here`."""
        ...

    def lacking(self, program: Program, options: Sequence[Option]) -> int:
        """Bytes by which files of these options exceed the disk there is."""
        ...
