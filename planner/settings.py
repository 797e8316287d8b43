"""Settings: a variant's choices applied to a ghost by the same code that applies them to a live pipeline."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch

from planner.ghost import Ghost
from planner.program import Variant
from planner.techniques import DEFAULT
from planner.techniques.base import Option, Technique, Undo
from planner.techniques.channels_last import to_channels_last
from planner.techniques.precision import cast_by_loading
from planner.techniques.vae_slicing import set_slicing
from planner.techniques.vae_tiling import set_tile, spatial_attributes, tile_attributes

FLAGS = ("use_slicing", "use_tiling")


class Settings:
    """Brings one ghost from variant to variant; each starts from the ghost as it was made."""

    def __init__(self, ghost: Ghost, techniques: Sequence[Technique] = DEFAULT) -> None:
        self._techniques = {technique.name: technique for technique in techniques}
        self._undos: list[Undo] = []
        self._tables: list[tuple[MutableMapping[str, Any], dict[str, Any]]] = [
            (table, dict(table))
            for _, m in ghost.modules()
            for part in m.modules()
            for table in (part._parameters, part._buffers)
        ]
        self._flags = [
            (module, name, getattr(module, name))
            for _, module in ghost.modules()
            for name in (*FLAGS, *tile_attributes(module))
            if hasattr(module, name)
        ]

    def __call__(self, ghost: Ghost, variant: Variant) -> None:
        """Give the ghost the variant's dtype, layouts, slicing and tiles, and apply its further options."""
        while self._undos:
            self._undos.pop()()
        for table, tensors in self._tables:
            table.update(tensors)
        for module, name, value in self._flags:
            setattr(module, name, value)
        for name, module in ghost.modules():
            if variant.dtype:
                _cast(module, getattr(torch, variant.dtype))
            if name in variant.channels_last:
                to_channels_last(module)
            if variant.sliced and hasattr(module, "use_slicing"):
                set_slicing(module)
            if variant.tile and hasattr(module, "use_tiling") and spatial_attributes(module):
                set_tile(module, variant.tile)
        for setting in variant.settings:
            option = Option(technique=setting.technique, value=setting.value)
            self._undos.append(self._techniques[setting.technique].apply(ghost.pipe, option))


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    wanted = {id(tensor) for tensor in cast_by_loading(module, dtype)}
    recast: Callable[..., torch.nn.Module] = module._apply
    recast(lambda tensor: tensor.to(dtype) if id(tensor) in wanted else tensor)
