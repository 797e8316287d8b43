"""Demands: techniques that a request names, which every plan then has, and those it rules out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner import absent
from planner.device import Device
from planner.errors import BadRequest
from planner.program import Program
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A technique by name, and perhaps the value it is to have; without one, whichever is best."""

    technique: str
    value: str = ""

    def meets(self, option: Option) -> bool:
        """Whether this option is what was asked for; what it leaves out after a dash need not be said."""
        value = str(option.value)
        return option.technique == self.technique and self.value in ("", value, value.partition("-")[0])

    def __str__(self) -> str:
        return f"{self.technique}={self.value}" if self.value else self.technique


def demands(request: Request, techniques: Sequence[Technique]) -> tuple[Demand, ...]:
    """What the request names.  Raises BadRequest for techniques there are not, and for those also ruled out."""
    found = tuple(Demand(technique=name, value=value) for name, _, value in (d.partition("=") for d in request.use))
    named = {demand.technique for demand in found}
    known = [technique.name for technique in techniques]
    for name in (*(demand.technique for demand in found), *request.without):
        if name not in known and (why := absent.reason(name)):
            raise BadRequest(f"{name} cannot be had: {why}.")
        if name not in known:
            raise BadRequest(f"There is no technique {name!r} among the {len(known)} given; choose {', '.join(known)}.")
    if both := sorted(named & set(request.without)):
        raise BadRequest(f"{both[0]} is both asked for and ruled out; leave one of the two away.")
    if parted := [technique for technique in techniques if technique.scope == "component" and technique.name in named]:
        raise BadRequest(
            f"{parted[0].name} is chosen for each component by itself; rule out what it competes with instead: "
            "without=placement keeps weights on the card."
        )
    return found


def chosen(
    demand: Demand, technique: Technique, program: Program, device: Device, request: Request
) -> tuple[Option, ...]:
    """The options that meet a demand.  Raises BadRequest with the reason where there are none."""
    options = technique.options(program, device, request)
    if met := tuple(option for option in options if demand.meets(option)):
        if request.plain and not any(option.plain for option in met):
            raise BadRequest(
                f"{demand} needs code of ours, and only plain diffusers was asked for; drop one of the two."
            )
        return tuple(option for option in met if option.plain or not request.plain)
    if why := absent.reason(demand.technique, demand.value):
        raise BadRequest(f"{demand} cannot be had: {why}.")
    freer = technique.options(program, device, replace(request, fidelity=Fidelity.LOSSY))
    if found := [option for option in freer if demand.meets(option)] or ([] if options else freer):
        level, most = found[0].fidelity.name.lower(), request.fidelity.name.lower()
        raise BadRequest(f"{demand} is {level}, and at most {most} was asked for; ask for fidelity {level}.")
    lacks = getattr(technique, "lacks", None)
    if lacks and (missing := lacks(demand.value, program, device)):
        raise BadRequest(f"{demand} cannot be had for this {program.pipeline}: it {missing}.")
    if options:
        raise BadRequest(f"{demand} is not on offer; choose {', '.join(str(option.value) for option in options)}.")
    needs = getattr(technique, "needs", "more than this pipeline, card and request have")
    raise BadRequest(f"{demand.technique} cannot be had for this {program.pipeline}: it needs {needs}.")
