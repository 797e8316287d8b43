"""Placement: where weights wait and when they travel to the card; diffusers' own ways, for the pipeline as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner import host
from planner.device import Device
from planner.errors import ApplyFailed
from planner.group_hooks import Grouping
from planner.groupable import moves
from planner.offload import model_offload, resident, sequential_offload
from planner.packed import is_packed, is_wrapped
from planner.program import Program, Variant
from planner.request import Request
from planner.techniques import group
from planner.techniques.base import Haul, Option, Scope, Undo
from planner.techniques.entrance import is_ours, travels
from planner.techniques.live import default_device, in_reverse, modules, parts, remember, tensors, undone_on_error
from planner.units import format_bytes

CALLS = {
    "resident": 'pipe.to("cuda")',
    "model": "pipe.enable_model_cpu_offload()",
    "sequential": "pipe.enable_sequential_cpu_offload()",
}
REWRITES = {"resident": resident, "model": model_offload, "sequential": sequential_offload}
PACKED = "whose weights are packed, which hooks lose when they move them one by one; name resident or model"
LOST = {
    "sequential": {
        "quantized": PACKED,
        "weight_norm": "whose weights are made of others that arrive after they were wanted; name model",
        "lends_weights": "with layers that nobody calls, so that their weights would not arrive; name model",
    },
    "model": {"clinging": "in 8 bits of bitsandbytes, which lose what they are moved to; name resident"},
}
"""Traits of components that a placement cannot do with, and why."""
STATE = ("_all_hooks", "_offload_device", "_offload_gpu_id")
"""What diffusers' offloading leaves on a pipeline."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Components resident on the card, moved there one at a time, weight by weight, or in groups.  Exact."""

    device: str = ""
    """Where the pipeline computes; empty: cuda where there is one, else cpu."""
    folder: str = ""
    """Where files of weights go that wait on disk; empty: the user's cache."""
    room: int | None = None
    """Bytes that these files may take; None: no limit is known."""
    sparing: bool = False
    """Whether weights may wait on disk though nobody named it."""
    name: str = "placement"
    scope: Scope = "call"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:
        if any("travels" in component.traits for component in program.components):
            staying = (c.name for c in program.components if "travels" not in c.traits)
            calls = tuple(f'pipe.{name}.to("cuda")' for name in staying)
            return (Option(technique=self.name, value="resident", neutral=True, calls=calls),)
        able = tuple(value for value in CALLS if not self.lacks(value, program, device))
        return (
            *(Option(technique=self.name, value=v, neutral=v == "resident", calls=(CALLS[v],)) for v in able),
            *(
                Option(technique=self.name, value=choice.value, calls=choice.calls)
                for choice in group.choices(program, self._groupings(request))
                if self.room is None or group.written(program, choice) <= self.room
            ),
        )

    def lacks(self, value: str, program: Program, device: Device) -> str:  # noqa: ARG002
        """Why a placement that was named cannot be had; empty where it is none."""
        kind = value.partition("-")[0]
        if kind not in REWRITES and kind not in group.ALL:
            return ""
        if kind == "model" and not any(program.chain):
            return "has no model_cpu_offload_seq, the order in which components move; name sequential or group_leaf"
        for trait, why in LOST.get(kind, {"quantized": PACKED} if kind in group.ALL else {}).items():
            if lost := [component.name for component in program.components if trait in component.traits]:
                return f"has {len(lost)} of {len(program.components)} components ({', '.join(lost)}) {why}"
        if kind not in group.ALL:
            return ""
        found = next(group.choices(program, {kind: group.ALL[kind]}), None)
        if found and self.room is not None and (needed := group.written(program, found)) > self.room:
            files, there = format_bytes(needed), format_bytes(self.room)
            return f"writes {files} to disk, where {there} are free or allowed; allow more disk or free some"
        return "has no denoiser whose blocks or layers diffusers can group so; name another"

    def housed(self, disk: int | None, *, here: bool) -> Placement:
        """The same with so many bytes of disk; where none are named and it is `here`, what the folder has free."""
        free = host.free_disk(Path(self.folder) if self.folder else group.default_folder()) if here else self.room
        return replace(self, room=free if disk is None else disk)

    def lacking(self, program: Program, options: Sequence[Option]) -> int:
        """Bytes by which what these options write to disk is more than there is room for."""
        values = [str(option.value) for option in options if option.technique == self.name]
        written = sum(group.written(program, group.Choice.of(value)) for value in values if value not in REWRITES)
        return 0 if self.room is None else max(written - self.room, 0)

    def spared(self) -> Placement:
        """The same with what needs next to no host memory on offer."""
        return replace(self, sparing=True)

    def hauls(self, program: Program, option: Option) -> Sequence[Haul] | None:
        """What travels weight by weight, or by leaves."""
        value, staying, beside = str(option.value), program.excluded, False
        if value != "sequential":
            if value in REWRITES or (choice := group.Choice.of(value)).grouping.blocks:
                return None
            staying, beside = frozenset(choice.without), choice.grouping.stream
        names = (component.name for component in program.components if component.name not in staying)
        return tuple(Haul(component=name, beside=beside) for name in names)

    def _groupings(self, request: Request) -> dict[str, Grouping]:
        """Those everybody gets, and what is named."""
        values = (value for name, _, value in (used.partition("=") for used in request.use) if name == self.name)
        named = {value.partition("-")[0] for value in values}
        further = {name: grouping for name, grouping in (group.ON_DISK | group.NAMED).items() if name in named}
        return group.GROUPINGS | (group.ON_DISK if self.sparing else {}) | further

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return variant

    def apply(self, pipe: Any, option: Option) -> Undo:
        check_free(pipe)
        device = self.device or default_device()
        if option.value not in REWRITES:
            choice = group.Choice.of(str(option.value))
            if choice.grouping.disk:
                return group.onto_disk(pipe, choice.value, self.folder or group.default_folder(), device=device)
            return group.offload(pipe, choice.grouping, choice.without, device)
        undo = remember_places(pipe)
        with undone_on_error(undo):
            if option.value == "model":
                pipe.enable_model_cpu_offload(device=device)
            elif option.value == "sequential" and device == "cpu":
                _sequential_on_cpu(pipe)
            elif option.value == "sequential":
                pipe.enable_sequential_cpu_offload(device=device)
            else:
                _settle(pipe, device)
        return undo

    def rewrite(self, program: Program, option: Option) -> Program:
        value = str(option.value)
        return REWRITES[value](program) if value in REWRITES else group.rewritten(program, group.Choice.of(value))


def _settle(pipe: Any, device: str) -> None:
    """Everything on the card, but for components whose weights travel already.

    In the order of the components, as the promise has it: `pipe.to` goes by a set, another order in each process, which
    leaves other gaps.  What bitsandbytes packs is left to the pipeline, unless it has components that must stay, and
    its 8 bits not even that.
    """
    whole = modules(pipe)
    free = not any(is_ours(getattr(part, "_hf_hook", None)) for part in whole.values())
    for part in whole.values():
        for layer in _clinging(part):
            _carry(layer, device)
        if not travels(part) and not (free and _packs_apart(part)):
            part.to(device)
    if free:
        pipe.to(device)


def _packs_apart(module: Any) -> bool:
    """Whether weights have what they are packed in beside them, so that not every `to` takes it along."""
    return any(is_packed(parameter) and not is_wrapped(parameter) for parameter in module.parameters())


def _clinging(part: Any) -> list[Any]:
    return [layer for layer in part.modules() if hasattr(getattr(layer, "weight", None), "SCB")]


def _carry(layer: Any, device: Any) -> None:
    """Move a packed layer; until one of 8 bits runs first, its scales are on the weight, where no `Module.to` looks."""
    weight = layer.weight
    if getattr(weight, "CB", None) is not None:
        weight.data, weight.SCB = weight.data.to(device), weight.SCB.to(device)
        weight.CB = weight.data
    layer.to(device)


def _sequential_on_cpu(pipe: Any) -> None:
    """The hooks of `enable_sequential_cpu_offload` without a card.

    diffusers asks for the device `cpu:0`, to which torch copies what lies on `cpu`, and accelerate then loses the
    weights' type; asked for `cpu`, the same hooks work.
    """
    import torch
    from accelerate import cpu_offload

    pipe.remove_all_hooks()
    pipe._offload_device = torch.device("cpu")
    for name, module in modules(pipe).items():
        if name not in pipe._exclude_from_cpu_offload:
            cpu_offload(module, pipe._offload_device, offload_buffers=len(module._parameters) > 0)


def check_free(pipe: Any) -> None:
    """Raise ApplyFailed, with what takes them off, where hooks that are not ours move weights."""
    whole = modules(pipe)
    hooked = [name for name, module in whole.items() if any(map(_is_foreign, module.modules()))]
    grouped = [name for name, module in whole.items() if not travels(module) and any(map(moves, module.modules()))]
    if getattr(pipe, "hf_device_map", None):
        raise ApplyFailed(
            "The pipeline was loaded with a device_map, which fixes where it is; call pipe.reset_device_map()."
        )
    ways = ["pipe.remove_all_hooks() and pipe.to('cpu')"] if hooked else []
    ways += ["planner.techniques.group.remove_group_offload(pipe)"] if grouped else []
    if ways:
        moved = dict.fromkeys((*hooked, *grouped))
        raise ApplyFailed(
            f"{', '.join(moved)} ({len(moved)} of {len(pipe.components)} components) are offloaded by hooks that this "
            f"planner did not put there; call {' and '.join(ways)} first."
        )


def _is_foreign(part: Any) -> bool:
    """Whether accelerate has a hook on this module that is not ours."""
    hook = getattr(part, "_hf_hook", None)
    return hook is not None and not is_ours(hook)


def remember_places(pipe: Any) -> Undo:
    """What takes hooks off, puts every weight object back in its seat and moves it where it was.

    Sequential offload replaces weights by empty ones and would come back with untied copies; the objects themselves
    went to the CPU before that and still hold the bytes.
    """
    devices = [(tensor, tensor.device) for tensor in tensors(pipe) if not is_packed(tensor)]
    packed = (part for part in parts(pipe) if is_packed(getattr(part, "weight", None)))
    layers = [(layer, layer.weight, layer.weight.device) for layer in packed]
    seats = [(table, dict(table)) for part in parts(pipe) for table in (part._parameters, part._buffers)]
    forwards = in_reverse(remember(part, "forward", "_old_forward", "_hf_hook") for part in parts(pipe))
    attributes = remember(pipe, *STATE)

    def undo() -> None:
        pipe.remove_all_hooks()
        forwards()
        attributes()
        for table, tenants in seats:
            table.update(tenants)
        for tensor, device in devices:
            if tensor.device != device:
                tensor.data = tensor.data.to(device)
        for layer, weight, device in layers:
            if weight.device != device:
                _carry(layer, device)

    return undo
