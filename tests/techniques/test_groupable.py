"""Groups as the planner sees them are those that diffusers makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from planner.group_hooks import Grouping
from planner.groupable import moves, stacks_of
from planner.streamable import held
from planner.techniques.group import offload
from planner.trace import component_of


def groups(module: torch.nn.Module) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Shapes of the tensors of each group that diffusers' hooks hold, once."""
    seen: set[int] = set()
    for part in module.modules():
        registry: Any = getattr(part, "_diffusers_hook", None)
        hook = registry.get_hook("group_offloading") if registry else None
        if hook is not None and id(hook.group) not in seen:
            seen.add(id(hook.group))
            within = [t for m in hook.group.modules for t in (*m.parameters(), *m.buffers())]
            tensors = {id(t): t for t in (*within, *hook.group.parameters, *hook.group.buffers) if t.numel()}
            yield tuple(sorted(tuple(t.shape) for t in tensors.values()))


@pytest.mark.parametrize("together", [1, 2])
def test_the_same_weights_travel_together(pipe: Any, together: int) -> None:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    foreseen: dict[str, list[tuple[tuple[int, ...], ...]]] = {}
    for name, part in parts.items():
        tensors = list(held(part))
        found = foreseen.setdefault(name, [])
        for stack in stacks_of(part):
            rows = [blocks[n : n + together] for blocks in stack.lists for n in range(0, len(blocks), together)]
            sets = [tuple(place for unit in row for place in unit.places) for row in rows]
            found += [
                tuple(sorted(tuple(tensors[p].shape) for p in places)) for places in (*sets, stack.rest) if places
            ]
    undo = offload(pipe, Grouping(blocks=together), (), "cpu")
    made = {name: sorted(filter(None, groups(part))) for name, part in parts.items()}
    undo()
    assert made == {name: sorted(found) for name, found in foreseen.items()}


def test_a_class_that_refuses_has_no_stacks(sd: Any) -> None:
    sd.vae._supports_group_offloading = False
    assert stacks_of(sd.vae) == ()
    assert [stack.path for stack in stacks_of(sd.unet)] == [""]


def test_buffers_of_blocks_are_not_put_back_after_a_stream(sd: Any) -> None:
    """What `Stack.lasting` foresees, in diffusers' own words: which tensors get their copies on the host again."""
    net = sd.unet
    net.down_blocks[0].register_buffer("table", torch.ones(3))
    *_, stack = stacks_of(net)
    assert [tuple(list(held(net))[place].shape) for place in stack.lasting] == [(3,)]
    undo = offload(sd, Grouping(blocks=1), (), "cpu")
    group: Any = net.down_blocks[0]._diffusers_hook.get_hook("group_offloading").group
    waiting = {t: torch.zeros(0) for t in (*net.down_blocks[0].parameters(), *net.down_blocks[0].buffers())}
    group.cpu_param_dict, group.record_stream, group.stream = waiting, True, object()
    before = {tensor: tensor.data for tensor in waiting}
    group._offload_to_memory()
    kept = [tuple(tensor.shape) for tensor in waiting if tensor.numel()]
    for tensor, data in before.items():
        tensor.data = data
    group.stream = None
    undo()
    assert kept == [(3,)]


def test_buffers_of_single_layers_are_not_put_back_either(sd: Any) -> None:
    """By leaves; those of other modules are, in diffusers' own words: only `ModuleGroup.buffers` are."""
    net = sd.unet
    net.conv_in.register_buffer("table", torch.ones(3))
    net.down_blocks[0].register_buffer("table", torch.ones(5))
    foreseen = component_of("unet", net, sd).lasting
    undo = offload(sd, Grouping(blocks=0), (), "cpu")
    held_by = {
        name: [tuple(b.shape) for b in part._diffusers_hook.get_hook("group_offloading").group.buffers]
        for name, part in net.named_modules()
        if moves(part) and list(part.buffers(recurse=False))
    }
    undo()
    assert foreseen == ("conv_in",)
    assert held_by == {"conv_in": [], "down_blocks.0": [(5,)]}


def test_a_childs_buffers_are_two_tensors_from_the_second_turn_on(sd: Any) -> None:
    """What `Stack.tables` foresees is seen in diffusers' own hook."""
    net = sd.unet
    net.conv_in.register_buffer("table", torch.ones(3))
    net.register_buffer("own", torch.ones(5))
    tensors = list(held(net))
    *_, stack = stacks_of(net)
    assert [tuple(tensors[place].shape) for place in stack.tables] == [(3,)]
    undo = offload(sd, Grouping(blocks=1), (), "cpu")
    group: Any = net._diffusers_hook.get_hook("group_offloading").group
    assert any(buffer is net.conv_in.table for buffer in group.buffers)
    group.modules[0].to(torch.float64)  # a child moved by `Module.to`, here to another dtype, has new buffers
    assert not any(buffer is net.conv_in.table for buffer in group.buffers)
    undo()


def test_weights_come_in_the_order_in_which_a_module_moves_them() -> None:
    """What a module holds goes before its own: position ids after embeddings, scales of a block after its layers."""
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2))
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), inner, torch.nn.BatchNorm1d(2))
    net.scale, inner.shift = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    net.register_buffer("places", torch.arange(2))
    net.append(net[0])
    order: list[int] = []
    net._apply(lambda tensor: (order.append(id(tensor)), tensor)[1])
    assert [id(tensor) for tensor in held(net)] == list(dict.fromkeys(order))
