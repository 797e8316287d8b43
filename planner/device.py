"""One card, as the planner sees it: a value.  Nothing below the probe asks a live GPU."""

from __future__ import annotations

from dataclasses import dataclass

BARE_CONTEXTS = {(8, 6): 256 * 2**20, (8, 9): 426 * 2**20}
"""Bytes of a CUDA context before anything runs, by compute capability: an RTX 3090 with CUDA 12.8 and driver 610.43
(invoke-ai/InvokeAI#9413), an RTX 6000 Ada with CUDA 13.0 (unslothai/unsloth-zoo#1053).  Lower ones are published too:
128 MiB (invoke-ai/InvokeAI#9447), 254 MiB (pytorch/pytorch#86509).  All load kernels when they are first needed."""
KERNELS = 164 * 2**20
"""Bytes of the kernels a run loads: 0.16 GiB on an H100 without other cards (vllm-project/vllm#12126)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """Scratch that convolutions of one kind take on a card beyond what is foreseen."""

    kind: str
    """What decides which engines there are, as `workspace.kind` says it."""
    maps: float
    """Bytes beyond for each byte of input and output."""
    weight: float
    """Bytes beyond for each byte of the weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Bytes, bytes per second and FLOP per second of one card."""

    name: str
    """As NVML reports it."""
    total: int
    """Bytes of device memory."""
    free: int
    """Bytes nobody uses now."""
    compute_capability: tuple[int, int]
    """Major and minor number; zeros where unknown."""
    multiprocessors: int
    """How many the card has."""
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
    """Whether its tensor cores know bfloat16."""
    power: float = 0.0
    """Watts the card may draw; 0 where unknown."""
    server: bool = False
    """Whether such cards sit in servers, whose cores are many and slow."""
    issue: float = 0.0
    """Seconds of this host to launch one operation; 0 where not measured."""
    return_rate: float = 0.0
    """Bytes/s back to ordinary host memory; 0 where not measured."""
    products: float = 1.0
    """Speed of matrix products in half precision ÷ what the time model expects of such a card."""
    singles: float = 1.0
    """The same ratio in single precision."""
    convolutions: float = 1.0
    """The same ratio of convolutions."""
    attentions: float = 1.0
    """The same ratio of fused attention."""
    traffic: float = 1.0
    """The same ratio of elementwise kernels."""
    excess: tuple[Excess, ...] = ()
    """Scratch of convolutions beyond what is foreseen, where some was measured."""
    context: int = 0
    """Bytes a process holds outside torch's allocator; where nothing was measured, what is published."""
    uuid: str = ""
    """Empty where the card is not of this machine."""
    driver: str = ""
    """Version; empty where the card is not of this machine."""
    pcie: tuple[int, int] = (0, 0)
    """Generation and number of lanes; zeros where unknown."""
    mig: bool = False
    """Whether it is a slice of a card."""
    source: str = ""
    """Where the figures come from: `NVML`, or the card profile."""

    def __post_init__(self) -> None:
        if not self.context:
            object.__setattr__(self, "context", published_context(self.compute_capability))


def published_context(compute_capability: tuple[int, int]) -> int:
    """Bytes of the CUDA context and its kernels on such a card; where nobody has published it, the largest known."""
    return BARE_CONTEXTS.get(compute_capability, max(BARE_CONTEXTS.values())) + KERNELS
