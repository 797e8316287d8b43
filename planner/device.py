"""One card, as the planner sees it: a value.  Nothing below the probe asks a live GPU."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT = 450 * 2**20
"""Bytes a process holds outside torch's allocator (CUDA context and lazily loaded kernels) when nothing was measured.
Published: 256 MiB on an RTX 3090 (torch 2.7.1+cu128, InvokeAI#9413), 426 MiB on an RTX 6000 Ada (torch 2.10+cu130,
unsloth-zoo#1053), 287,047,680 B lazy (pytorch#86509); the default lies above all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Bytes, bytes per second and FLOP per second of one card."""

    name: str
    total: int
    """Bytes of device memory."""
    free: int
    """Bytes nobody uses now."""
    compute_capability: tuple[int, int]
    multiprocessors: int
    half_rate: float
    """Dense fp16/bf16 FLOP/s with fp32 accumulation."""
    single_rate: float
    """fp32 FLOP/s outside tensor cores."""
    bandwidth: float
    """Bytes/s of device memory."""
    l2: int
    """Bytes of second-level cache."""
    pinned_rate: float
    """Bytes/s from pinned host memory."""
    pageable_rate: float
    """Bytes/s from ordinary host memory."""
    native_bf16: bool
    power: float = 0.0
    """Watts the card may draw; 0 where unknown."""
    server: bool = False
    """Whether such cards sit in servers, whose cores are many and slow."""
    issue: float = 0.0
    """Seconds of this host to launch one operation; 0 where not measured."""
    return_rate: float = 0.0
    """Bytes/s back to ordinary host memory; 0 where not measured."""
    products: float = 1.0
    """Speed of matrix products in half precision against what the time model expects of such a card."""
    singles: float = 1.0
    """The same in single precision."""
    convolutions: float = 1.0
    attentions: float = 1.0
    traffic: float = 1.0
    """The same of elementwise kernels."""
    context: int = CONTEXT
    uuid: str = ""
    driver: str = ""
    pcie: tuple[int, int] = (0, 0)
    """Generation and lanes; zeros where unknown."""
    mig: bool = False
    source: str = ""
    """Where the figures come from: `NVML`, or the card profile."""
