"""Casting: layers whose weights are of one dtype while they wait and of another while they run, as diffusers' hooks do.

The cast weights are temporaries of whoever calls the layer, and what they were made from is kept (`holding`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planner.dispatch import nbytes
from planner.holding import HOOK
from planner.kernels import Plain
from planner.recorder import Recorder
from planner.replay import Replay, own_weights


class Casting:
    """Notes casts of single layers while a recording is under way."""

    def __init__(self, recorder: Recorder, replay: Replay) -> None:
        self._recorder, self._replay = recorder, replay

    def concerns(self, layer: torch.nn.Module) -> bool:
        """Whether this layer is cast for a moment only, not for good."""
        registry = getattr(layer, "_diffusers_hook", None)
        return self._recorder.depth > 1 and registry is not None and HOOK in registry.hooks

    def __call__(self, layer: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Cast a layer's weights before it runs."""
        self._replay.resting[id(layer)] = own_weights(layer, buffers=True)
        tables: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and (cast := _changed(tensor, change)).dtype != tensor.dtype:
                    self._recorder.allocated((cast,))
                    self._recorder.ran(Plain(name="_to_copy", flops=0, traffic=nbytes(tensor) + nbytes(cast)))
                    table[name] = torch.nn.Parameter(cast, tensor.requires_grad)


def _changed(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        return change(tensor)
