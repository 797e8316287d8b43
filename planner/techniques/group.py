"""Group offload by diffusers: switched on through its public method, and taken off again, for which it has none.

diffusers never reconfigures: what has its hooks keeps them, and `remove_all_hooks` leaves them on.  So undoing means
removing each hook, giving modules their own `forward` back, and taking weights out of pinned memory.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from planner.errors import ApplyFailed, BadRequest
from planner.group_hooks import Grouping
from planner.group_offload import group_offload, groupable
from planner.groupable import moves
from planner.program import Program
from planner.techniques.entrance import on_call
from planner.techniques.live import Undo, in_reverse, modules, parts_of, remember, tensors_of, undone_on_error
from planner.units import format_bytes

GROUPINGS = {
    "group_block": Grouping(blocks=1),
    "group_leaf": Grouping(),
    "group_block_stream": Grouping(blocks=1, stream=True),
    "group_leaf_stream": Grouping(stream=True),
}
"""Settings by the name under which a plan chooses them."""
ON_DISK = {
    "group_block_disk": Grouping(blocks=1, disk=True),
    "group_leaf_disk": Grouping(disk=True),
    "group_block_stream_disk": Grouping(blocks=1, stream=True, disk=True),
    "group_leaf_stream_disk": Grouping(stream=True, disk=True),
}
"""Slower by far; for those who name them, and where host memory cannot hold the weights."""
NAMED = {
    "group_block_stream_low_cpu_mem": Grouping(blocks=1, stream=True, pinned=False),
    "group_leaf_stream_low_cpu_mem": Grouping(stream=True, pinned=False),
    "group_block_stream_record": Grouping(blocks=1, stream=True, record=True),
    "group_leaf_stream_record": Grouping(stream=True, record=True),
}
"""For those who name them: `streaming` pins no byte too many, and recording gains little for memory less well known."""
ALL = GROUPINGS | ON_DISK | NAMED
STREAMING = ("use_stream", "record_stream", "low_cpu_mem_usage")
"""Arguments for devices with streams."""
HOOKS = ("lazy_prefetch_group_offloading", "layer_execution_tracker", "group_offloading")
"""Names of the hooks diffusers registers."""
_VALUE = re.compile(r"(group_\w+?)(?:-without-(\w+(?:\+\w+)*))?")


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting, and the components it leaves on the card."""

    name: str
    without: tuple[str, ...]

    @classmethod
    def of(cls, value: str) -> Choice:
        """What `group_leaf_stream-without-vae` stands for.  Raises BadRequest."""
        match = _VALUE.fullmatch(value)
        if match is None or match[1] not in ALL:
            raise BadRequest(f"{value!r} is none of the {len(ALL)} group settings; use {', '.join(ALL)}.")
        return cls(match[1], tuple(match[2].split("+")) if match[2] else ())

    @property
    def value(self) -> str:
        """As a plan keeps it."""
        return self.name + (f"-without-{'+'.join(self.without)}" if self.without else "")

    @property
    def grouping(self) -> Grouping:
        """The setting by its parts."""
        return ALL[self.name]

    @property
    def calls(self) -> tuple[str, ...]:
        """The plain diffusers code; onto disk it would write what two components name alike to one file."""
        if self.grouping.disk:
            return (
                "from planner.techniques.group import onto_disk",
                f'onto_disk(pipe, {_literal(self.value)}, "offload")',
            )
        given = [f"{name}={_literal(value)}" for name, value in settings(self.grouping).items()]
        given += [f"exclude_modules=[{', '.join(map(_literal, self.without))}]"] if self.without else []
        return (f'pipe.enable_group_offload(torch.device("cuda"), {", ".join(given)})',)


def calls_for_one(component: str, setting: str) -> tuple[str, ...]:
    """The plain diffusers code for one component; onto disk by ours, which keeps what two modules share."""
    grouping = ALL[setting]
    if grouping.disk:
        call = f'one_onto_disk(pipe.{component}, {_literal(setting)}, "offload")'
        return ("from planner.techniques.group import one_onto_disk", call)
    given = ", ".join(f"{name}={_literal(value)}" for name, value in settings(grouping).items())
    places = 'torch.device("cuda"), torch.device("cpu")'
    call = f"apply_group_offloading(pipe.{component}, {places}, {given})"
    return ("from diffusers.hooks import apply_group_offloading", call)


def choices(program: Program, groupings: Mapping[str, Grouping] = GROUPINGS) -> Iterator[Choice]:
    """The settings under which at least one component travels; by blocks only where the denoiser has blocks.

    None where a component is quantized: undoing would have to swap what its weights are packed in.
    """
    if any("quantized" in component.traits for component in program.components):
        return
    for name, grouping in groupings.items():
        able = {c.name for c in program.components if groupable(program, c.name, grouping)}
        working = [c for c in program.components if c.name in able and "denoiser" in c.traits]
        if working and (not grouping.blocks or any(stack.lists for c in working for stack in c.stacks)):
            yield Choice(name, tuple(c.name for c in program.components if c.name not in able))


def written(program: Program, choice: Choice) -> int:
    """Bytes of weights that wait in files."""
    travelling = (c for c in program.components if c.name not in choice.without)
    return sum(sum(component.weights) for component in travelling) if choice.grouping.disk else 0


def rewritten(program: Program, choice: Choice) -> Program:
    """The program under a choice."""
    travelling = (c.name for c in program.components if c.name not in choice.without)
    return group_offload(program, choice.grouping, travelling)


def settings(grouping: Grouping) -> dict[str, Any]:
    """Arguments of `enable_group_offload`."""
    given: dict[str, Any] = {"offload_type": "block_level" if grouping.blocks else "leaf_level"}
    given |= {"num_blocks_per_group": grouping.blocks} if grouping.blocks else {}
    given |= {"use_stream": True} if grouping.stream else {}
    given |= {"record_stream": True} if grouping.record else {}
    return given | ({"low_cpu_mem_usage": True} if grouping.stream and not grouping.pinned else {})


def offload(pipe: Any, grouping: Grouping, without: Iterable[str], device: str, folder: Path | None = None) -> Undo:
    """Switch group offload on for all components but those of `without`, which go to `device`; return what undoes it.

    With a `folder` the weights wait on disk, in a new folder in it, which must outlast the hooks and goes when they are
    taken off.  A device without streams copies without them: the same hooks, the same numbers.
    """
    import torch

    staying = list(without)
    if unknown := [name for name in staying if name not in modules(pipe)]:
        raise ApplyFailed(
            f"The plan keeps {unknown[0]!r} on the card, which is none of this pipeline's {len(modules(pipe))} "
            "components; plan this pipeline."
        )
    target, given = torch.device(device), _given(grouping, device)
    travelling = [module for name, module in modules(pipe).items() if name not in staying]
    files = _files(travelling, folder) if folder else None
    undo = _taken_back(modules(pipe).values(), travelling, files, grouping)
    with undone_on_error(undo):
        if files:
            _one_by_one(pipe, staying, target, files, given)
        else:
            pipe.enable_group_offload(target, torch.device("cpu"), exclude_modules=staying, **given)
    return undo


def offload_one(module: Any, grouping: Grouping, device: str, folder: Path | None = None) -> Undo:
    """Switch group offload on for one component, wherever the others are; return what undoes it.

    With a `folder` its weights wait on disk, as with `offload`.
    """
    import torch

    files = _files([module], folder) if folder else None
    undo = _taken_back([module], [module], files, grouping)
    with undone_on_error(undo):
        _switch_on(module, torch.device(device), files, _given(grouping, device))
        bears = on_call(module, torch.device(device), lambda: None, travelling=True)
    return in_reverse((undo, bears))


def one_onto_disk(module: Any, setting: str, folder: str | Path, *, device: str = "cuda") -> Undo:
    """Have one component's weights wait in files in `folder`; return what undoes it and removes them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return offload_one(module, Choice.of(setting).grouping, device, Path(folder))


def onto_disk(pipe: Any, value: str, folder: str | Path, *, device: str = "cuda") -> Undo:
    """Switch on a group setting whose weights wait in files in `folder`; return what undoes it and removes them."""
    choice = Choice.of(value)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return offload(pipe, choice.grouping, choice.without, device, Path(folder))


def remove_group_offload(pipe: Any) -> None:
    """Take off group offload of others, for which diffusers has no way; all weights go to the host."""
    import torch

    grouped = [module for module in modules(pipe).values() if any(map(moves, module.modules()))]
    _unhook(modules(pipe).values())
    for part in (part for module in grouped for part in module.modules()):
        registry: Any = getattr(part, "_diffusers_hook", None)
        if registry is not None and not registry.hooks:
            del part._diffusers_hook
            if getattr(vars(part).get("forward"), "__func__", None) is type(part).forward:
                del part.forward
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            _bring_home(tensor, torch.device("cpu"))
    _give_back_pinned()


def default_folder() -> Path:
    """Where files of weights go unless somebody says; not that of temporary files, which often lies in memory."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("vram-planner")) / "weights"


def _given(grouping: Grouping, device: str) -> dict[str, Any]:
    """Arguments for that device: one without streams copies without them."""
    given = settings(grouping)
    return {n: v for n, v in given.items() if n not in STREAMING} if device.startswith("cpu") else given


def _taken_back(components: Iterable[Any], travelling: Sequence[Any], files: Path | None, grouping: Grouping) -> Undo:
    """What undoes group offload of those that travel, from how these components are now."""
    whole = list(components)
    return in_reverse(
        (
            partial(shutil.rmtree, files) if files else in_reverse(()),
            _remembered(whole),
            _untied(travelling if files and not grouping.blocks else ()),
            lambda: _unhook(whole),
        )
    )


def _one_by_one(pipe: Any, staying: Iterable[str], target: Any, folder: Path, given: dict[str, Any]) -> None:
    """As the pipeline's own method does, with a folder for each component: files are named by paths in it alone."""
    for name, module in modules(pipe).items():
        if name in staying:
            module.to(target)
        else:
            _switch_on(module, target, folder / name, given)


def _switch_on(module: Any, target: Any, files: Path | None, given: dict[str, Any]) -> None:
    import torch
    from diffusers.hooks import apply_group_offloading

    switch_on = getattr(module, "enable_group_offload", None) or partial(apply_group_offloading, module)
    switch_on(target, torch.device("cpu"), offload_to_disk_path=str(files) if files else None, **given)


def _files(travelling: Iterable[Any], folder: Path) -> Path:
    """A new folder in this one.  Raises ApplyFailed where the weights would not fit."""
    size = sum(tensor.nbytes for module in travelling for tensor in (*module.parameters(), *module.buffers()))
    if size > (free := shutil.disk_usage(folder).free):
        raise ApplyFailed(
            f"{format_bytes(size)} of weights are to wait in {folder}, where {format_bytes(free)} are free; name "
            "another folder with Placement(folder=…)."
        )
    return Path(tempfile.mkdtemp(dir=folder))


def _untied(travelling: Iterable[Any]) -> Undo:
    """A parameter object for each module that holds a weight, over the same bytes.

    diffusers writes a shared one to disk twice, and empty the second time.
    """
    import torch

    seats: list[tuple[Any, dict[str, Any]]] = []
    seen: set[int] = set()
    for table in (part._parameters for module in travelling for part in module.modules()):
        for name, weight in table.items():
            if weight is not None and id(weight) in seen:
                seats.append((table, {name: weight}))
                table[name] = torch.nn.Parameter(weight.data, requires_grad=weight.requires_grad)
            seen.add(id(weight))

    def undo() -> None:
        for table, tenants in seats:
            table.update(tenants)

    return undo


def _remembered(components: Sequence[Any]) -> Undo:
    """What brings every weight back to where it was, and every buffer, of which the hooks get copies.

    `Module.to` puts new buffers in the old ones' place; were these given to the hooks, or the copies kept here, their
    bytes would stay on the card.
    """
    places = [(tensor, tensor.device) for tensor in tensors_of(components)]
    own = [remember(part, "forward", "_diffusers_hook") for part in parts_of(components)]
    seats = [(part._buffers, dict(part._buffers)) for part in parts_of(components) if part._buffers]
    copies: dict[int, Any] = {}
    for table, tenants in seats:
        for name, buffer in tenants.items():
            if buffer is not None:
                table[name] = copies.setdefault(id(buffer), buffer.clone())
                buffer.data = buffer.data.cpu()
    copies.clear()

    def undo() -> None:
        in_reverse(own)()
        for table, tenants in seats:
            table.update(tenants)
        for tensor, device in places:
            _bring_home(tensor, device)
        _give_back_pinned()

    return undo


def _bring_home(tensor: Any, device: Any) -> None:
    if tensor.device != device:
        tensor.data = tensor.data.to(device)
    elif device.type == "cpu" and tensor.is_pinned():
        tensor.data = tensor.data.clone()


def _unhook(components: Iterable[Any]) -> None:
    """Every hook of group offload off; those on disk load their weights first."""
    for part in parts_of(components):
        registry: Any = getattr(part, "_diffusers_hook", None)
        for name in HOOKS:
            hook = registry.get_hook(name) if registry is not None else None
            if hook is None:
                continue
            if name == "group_offloading" and hook.group.offload_to_disk_path is not None:
                _read_back(hook.group)
            registry.remove_hook(name, recurse=False)


def _read_back(group: Any) -> None:
    """The weights of a group from its file, which then goes."""
    from safetensors.torch import load_file

    file = Path(group.safetensors_file_path)
    if not file.exists():  # read through another module of the group
        return
    loaded = load_file(file)
    for key, tensor in group.key_to_tensor.items():
        tensor.data = loaded[key].clone()  # aligned as torch aligns, and no view of the file
    file.unlink()


def _give_back_pinned() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.accelerator.memory.empty_host_cache()


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
