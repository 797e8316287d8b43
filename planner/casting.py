"""Casting: layers whose weights are of one dtype while they wait and of another while they run, as diffusers' hooks do.

The cast weights are temporaries of whoever calls the layer.  What they were made from counts on meanwhile: layers of
one shape share a body, which cannot say whose weights are gone for a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planner.dispatch import nbytes
from planner.program import Plain
from planner.recorder import Recorder
from planner.replay import Replay, own_weights

Tables = tuple[dict[str, Any], dict[str, Any]]


class Casting:
    """Notes casts of single layers while a recording is under way."""

    def __init__(self, recorder: Recorder, replay: Replay) -> None:
        self._recorder, self._replay = recorder, replay
        self._waiting: dict[int, Tables] = {}
        """Weights as they were, of layers that run just now, by the ids of the layers."""

    def concerns(self, layer: torch.nn.Module) -> bool:
        """Whether this layer is cast for a moment only, not for good."""
        registry = getattr(layer, "_diffusers_hook", None)
        return self._recorder.depth > 1 and registry is not None and "layerwise_casting" in registry.hooks

    def forget(self) -> None:
        """After a recording that was broken off."""
        self._waiting.clear()
        self._replay.resting.clear()

    def __call__(self, layer: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Cast a layer's weights before it runs, or back after it."""
        waiting = self._waiting.pop(id(layer), None)
        if waiting is not None:
            self._put_back(layer, waiting)
            return
        self._replay.resting[id(layer)] = own_weights(layer, buffers=True)
        self._waiting[id(layer)] = waiting = ({}, {})
        for table, kept in zip(_tables(layer), waiting, strict=True):
            for name, tensor in table.items():
                if tensor is not None and (cast := _changed(tensor, change)).dtype != tensor.dtype:
                    kept[name] = tensor
                    self._recorder.allocated((cast,))
                    self._ran(tensor, cast)
                    table[name] = torch.nn.Parameter(cast, requires_grad=False)

    def _put_back(self, layer: torch.nn.Module, waiting: Tables) -> None:
        for table, kept in zip(_tables(layer), waiting, strict=True):
            for name, tensor in kept.items():
                self._ran(table[name], tensor)
            table.update(kept)
        del self._replay.resting[id(layer)]

    def _ran(self, source: torch.Tensor, result: torch.Tensor) -> None:
        self._recorder.ran(Plain(name="_to_copy", flops=0, traffic=nbytes(source) + nbytes(result)))


def _tables(layer: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return layer._parameters, layer._buffers


def _changed(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        return change(tensor)
