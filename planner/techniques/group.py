"""Group offload by diffusers: switched on through its public method, and taken off again, for which it has none.

diffusers never reconfigures: what has its hooks keeps them, and `remove_all_hooks` leaves them on.  So undoing means
removing each hook, giving modules their own `forward` back, and taking weights out of pinned memory.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from planner.errors import ApplyFailed, BadRequest
from planner.group_offload import Grouping, group_offload, groupable
from planner.groupable import moves
from planner.program import Program
from planner.techniques.live import Undo, in_reverse, modules, parts, remember, tensors, undone_on_error

GROUPINGS = {
    "group_block": Grouping(blocks=1),
    "group_leaf": Grouping(),
    "group_block_stream": Grouping(blocks=1, stream=True),
    "group_leaf_stream": Grouping(stream=True),
}
"""Settings by the name under which a plan chooses them."""
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
        if match is None or match[1] not in GROUPINGS:
            raise BadRequest(f"{value!r} is none of the {len(GROUPINGS)} group settings; use {', '.join(GROUPINGS)}.")
        return cls(match[1], tuple(match[2].split("+")) if match[2] else ())

    @property
    def value(self) -> str:
        """As a plan keeps it."""
        return self.name + (f"-without-{'+'.join(self.without)}" if self.without else "")

    @property
    def grouping(self) -> Grouping:
        """The setting by its parts."""
        return GROUPINGS[self.name]

    @property
    def call(self) -> str:
        """The plain diffusers code."""
        given = [f"{name}={_literal(value)}" for name, value in settings(self.grouping).items()]
        given += [f"exclude_modules=[{', '.join(map(_literal, self.without))}]"] if self.without else []
        return f'pipe.enable_group_offload(torch.device("cuda"), {", ".join(given)})'


def choices(program: Program) -> Iterator[Choice]:
    """The settings under which at least one component travels; by blocks only where the denoiser has blocks.

    None where a component is quantized: undoing would have to swap what its weights are packed in.
    """
    if any("quantized" in component.traits for component in program.components):
        return
    for name, grouping in GROUPINGS.items():
        able = {c.name for c in program.components if groupable(program, c.name, grouping)}
        working = [c for c in program.components if c.name in able and "denoiser" in c.traits]
        if working and (not grouping.blocks or any(stack.lists for c in working for stack in c.stacks)):
            yield Choice(name, tuple(c.name for c in program.components if c.name not in able))


def rewritten(program: Program, choice: Choice) -> Program:
    """The program under a choice."""
    travelling = (c.name for c in program.components if c.name not in choice.without)
    return group_offload(program, choice.grouping, travelling)


def settings(grouping: Grouping) -> dict[str, Any]:
    """Arguments of `enable_group_offload`."""
    given: dict[str, Any] = {"offload_type": "block_level" if grouping.blocks else "leaf_level"}
    given |= {"num_blocks_per_group": grouping.blocks} if grouping.blocks else {}
    given |= {"use_stream": True} if grouping.stream else {}
    return given | ({"low_cpu_mem_usage": True} if grouping.stream and not grouping.pinned else {})


def offload(pipe: Any, grouping: Grouping, without: Iterable[str], device: str, folder: Path | None = None) -> Undo:
    """Switch group offload on for all components but those of `without`, which go to `device`; return what undoes it.

    With a `folder` the weights wait on disk, in a new folder in it, which must outlast the hooks.  A device without
    streams copies without them: the same hooks, the same numbers.
    """
    import torch

    staying = list(without)
    if unknown := [name for name in staying if name not in modules(pipe)]:
        raise ApplyFailed(
            f"The plan keeps {unknown[0]!r} on the card, which is none of this pipeline's {len(modules(pipe))} "
            "components; plan this pipeline."
        )
    target, given = torch.device(device), settings(grouping)
    if target.type == "cpu":
        given = {name: value for name, value in given.items() if name not in ("use_stream", "low_cpu_mem_usage")}
    undo = in_reverse((_remembered(pipe), lambda: _unhook(pipe)))
    with undone_on_error(undo):
        if folder is None:
            pipe.enable_group_offload(target, torch.device("cpu"), exclude_modules=staying, **given)
        else:
            _one_by_one(pipe, staying, target, Path(tempfile.mkdtemp(dir=folder)), given)
    return undo


def remove_group_offload(pipe: Any) -> None:
    """Take off group offload of others, for which diffusers has no way; all weights go to the host."""
    import torch

    grouped = [module for module in modules(pipe).values() if any(map(moves, module.modules()))]
    _unhook(pipe)
    for part in (part for module in grouped for part in module.modules()):
        registry: Any = getattr(part, "_diffusers_hook", None)
        if registry is not None and not registry.hooks:
            del part._diffusers_hook
            if getattr(vars(part).get("forward"), "__func__", None) is type(part).forward:
                del part.forward
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            _bring_home(tensor, torch.device("cpu"))
    _give_back_pinned()


def _one_by_one(pipe: Any, staying: Iterable[str], target: Any, folder: Path, given: dict[str, Any]) -> None:
    """As the pipeline's own method does, with a folder for each component: files are named by paths in it alone."""
    import torch
    from diffusers.hooks import apply_group_offloading

    for name, module in modules(pipe).items():
        if name in staying:
            module.to(target)
            continue
        if given["offload_type"] == "leaf_level" and (tied := _tied(module)):
            raise ApplyFailed(
                f"{tied} of {name} belongs to 2 modules, and diffusers would write it to disk twice, the second time "
                f"empty; keep {name} in memory."
            )
        switch_on = getattr(module, "enable_group_offload", None) or partial(apply_group_offloading, module)
        switch_on(target, torch.device("cpu"), offload_to_disk_path=str(folder / name), **given)


def _tied(module: Any) -> str:
    """The first parameter that two modules hold; empty where none is."""
    every = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    once = {name for name, _ in module.named_parameters()}
    return next((name for name in every if name not in once), "")


def _remembered(pipe: Any) -> Undo:
    """What brings every weight back to where it was, and every buffer, of which the hooks get copies.

    `Module.to` puts new buffers in the old ones' place; were these given to the hooks, their bytes would stay on the
    card.
    """
    places = [(tensor, tensor.device) for tensor in tensors(pipe)]
    own = [remember(part, "forward", "_diffusers_hook") for part in parts(pipe)]
    seats = [(part._buffers, dict(part._buffers)) for part in parts(pipe) if part._buffers]
    copies: dict[int, Any] = {}
    for table, tenants in seats:
        for name, buffer in tenants.items():
            if buffer is not None:
                table[name] = copies.setdefault(id(buffer), buffer.clone())
                buffer.data = buffer.data.cpu()

    def undo() -> None:
        in_reverse(own)()
        for table, tenants in seats:
            table.update(tenants)
        for tensor, device in places:
            _bring_home(tensor, device)
        copies.clear()
        _give_back_pinned()

    return undo


def _bring_home(tensor: Any, device: Any) -> None:
    if tensor.device != device:
        tensor.data = tensor.data.to(device)
    elif device.type == "cpu" and tensor.is_pinned():
        tensor.data = tensor.data.clone()


def _unhook(pipe: Any) -> None:
    """Every hook of group offload off; those on disk load their weights first."""
    for part in parts(pipe):
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
