"""Groups as the planner sees them are those that diffusers makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from planner.group_offload import Grouping
from planner.groupable import stacks_of
from planner.streamable import held
from planner.techniques.group import offload


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
