"""Attention kernels of packages beside torch, which diffusers dispatches to, and what one of them lacks here.

Sources: diffusers 0.42.1 (attention_dispatch.py: packages, masks), flash-attention's README (capabilities, head sizes),
SageAttention's core.py (capabilities, head sizes, dtypes).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from planner.device import Device
from planner.kernels import Attention
from planner.request import Fidelity

HALF = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Kernels for half precision and attention without masks."""

    backend: str
    """Name of diffusers' `set_attention_backend`."""
    package: str
    """As it is imported."""
    head: int
    """Largest head size."""
    least: tuple[int, int] = (8, 0)
    """Lowest compute capability."""
    most: tuple[int, int] | None = None
    """Highest compute capability; None: no bound is known."""
    fidelity: Fidelity = Fidelity.EXACT

    def lacks(self, attentions: Sequence[Attention], device: Device) -> str:
        """What it needs and does not find, in words that follow "it"; empty where nothing is missing."""
        capability = device.compute_capability
        outside = capability < self.least or (self.most is not None and capability > self.most)
        inexact = sum(a.dtype not in HALF for a in attentions)
        widest = max((max(a.head_size, a.value_size) for a in attentions), default=0)
        masked = sum(a.mask != "none" for a in attentions)
        there = importlib.util.find_spec(self.package) is not None
        reasons = (
            (not attentions, "needs a model whose attention diffusers dispatches, and there is none here"),
            (outside, f"needs compute capability {self._capabilities}, and {device.name} has {_dotted(capability)}"),
            (inexact, f"needs float16 or bfloat16, and {inexact} of {len(attentions)} attentions are in other dtypes"),
            (widest > self.head, f"takes heads of at most {self.head} numbers, and there are heads of {widest}"),
            (masked, f"takes no masks, and {masked} of {len(attentions)} attentions have one"),
            (not there, f"needs the package {self.package}, not installed here; install it, or plan where it is"),
        )
        return next((words for lacking, words in reasons if lacking), "")

    @property
    def _capabilities(self) -> str:
        if self.most is None:
            return f"{_dotted(self.least)} or higher"
        return _dotted(self.least) if self.least == self.most else f"{_dotted(self.least)} to {_dotted(self.most)}"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


_HUB = "kernels"
LIBRARIES = {
    "flash_attn": Library(backend="flash", package="flash_attn", head=256),
    "flash_hub": Library(backend="flash_hub", package=_HUB, head=256),
    "flash_3": Library(backend="_flash_3", package="flash_attn_interface", head=256, least=(9, 0), most=(9, 0)),
    "flash_3_hub": Library(backend="_flash_3_hub", package=_HUB, head=256, least=(9, 0), most=(9, 0)),
    "flash_4_hub": Library(backend="flash_4_hub", package=_HUB, head=128, least=(9, 0), most=(10, 3)),
    "sage": Library(backend="sage", package="sageattention", head=128, fidelity=Fidelity.LOSSY),
    "sage_hub": Library(backend="sage_hub", package=_HUB, head=128, fidelity=Fidelity.LOSSY),
    "sage_fp16": Library(
        backend="_sage_qk_int8_pv_fp16_cuda", package="sageattention", head=128, fidelity=Fidelity.LOSSY
    ),
    "sage_fp16_triton": Library(
        backend="_sage_qk_int8_pv_fp16_triton", package="sageattention", head=128, fidelity=Fidelity.LOSSY
    ),
    "sage_fp8": Library(
        backend="_sage_qk_int8_pv_fp8_cuda", package="sageattention", head=128, least=(8, 9), fidelity=Fidelity.LOSSY
    ),
    "sage_fp8_sm90": Library(
        backend="_sage_qk_int8_pv_fp8_cuda_sm90", package="sageattention", head=128, least=(9, 0), most=(9, 0),
        fidelity=Fidelity.LOSSY,
    ),
}  # fmt: skip
"""By the name under which a plan has them.  Those from the hub fetch their kernels when the plan is applied."""
