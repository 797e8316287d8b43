"""Pace: how long a kernel and a transfer take on a card, as a roofline over FLOPs, traffic and the launch floor."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from planner import attention
from planner.device import Device
from planner.program import ITEM_SIZE, Attention, Conv, Kernel, Matmul, Plain

STREAMING = 0.75
"""Share of the bandwidth that kernels reach (SD 1.5 moves 36–46 GB a step on seven cards of 300–2039 GB/s)."""
SEQUENTIAL_GAIN = 2.0
"""Copies of single leaves are quicker than of whole modules: 2.8–4.6 GB/s (SDXL on an A100, diffusers' figures) where
model offload reaches 1.5; no fresh host memory is written."""
LEAF_SECONDS = 75e-6
"""Hook and copy set-up of one leaf under sequential offload (50–100 µs of accelerate's Python)."""
COMPILED_TRAFFIC = 0.5
"""Share of elementwise traffic left by fusion (compile gains of 1.12–1.20 on GeForce at equal products)."""
GRAPH_SECONDS = {"none": 0.0, "jit": 5.0, "compile": 67.4, "regional": 9.6}
"""One-time cost; FLUX.1-dev on an H100: 67.4 s whole, 9.6 s by repeated block (diffusers' figures)."""
LAUNCH = {"none": 24e-6, "jit": 21e-6, "compile": 6e-6, "regional": 6e-6}
"""Least seconds of one kernel: 24 µs an operation eager on a desktop with an RTX 4090, 28–43 µs on servers; tracing
saves a tenth of it (3.30 → 3.21 s on a Titan RTX)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds on one device, for one way of running."""

    device: Device
    tracing: str = "none"

    def kernel(self, kernel: Kernel) -> float:
        """Seconds of one kernel."""
        match kernel:
            case Plain(_, _, traffic):
                share = COMPILED_TRAFFIC if self.tracing in ("compile", "regional") else 1.0
                work = self._moved(traffic * share)
            case Matmul(dtype, flops, traffic):
                work = max(flops / self._rate(dtype), self._moved(traffic))
            case Conv():
                work = self._conv(kernel)
            case Attention():
                work = self._attention(kernel)
        return max(work, LAUNCH[self.tracing])

    def load(self, nbytes: int, leaves: int, *, whole: bool) -> float:
        """Seconds until weights have arrived from ordinary host memory, as a whole component or leaf by leaf."""
        if whole:
            return nbytes / self.device.pageable_rate
        rate = min(self.device.pageable_rate * SEQUENTIAL_GAIN, self.device.pinned_rate)
        return nbytes / rate + LEAF_SECONDS * leaves

    def fetch(self, nbytes: int) -> float:
        """Seconds of one copy from pinned host memory."""
        return nbytes / self.device.pinned_rate

    def _rate(self, dtype: str, *, tensor_float: bool = False) -> float:
        ampere = self.device.compute_capability >= (8, 0)
        if dtype == "bfloat16" and not self.device.native_bf16:
            return self.device.single_rate * self._share()
        if dtype in ("float16", "bfloat16"):
            return self.device.half_rate * self._share()
        if tensor_float and ampere:
            return max(self.device.half_rate / 2, self.device.single_rate) * self._share()
        return self.device.single_rate * self._share()

    def _share(self) -> float:
        """Share of the peak that products reach: data-centre parts wait for launches and memory more often."""
        match self.device.compute_capability:
            case (8, 0):
                return 0.5
            case (9 | 10, _):
                return 0.33
        return 0.75

    def _moved(self, nbytes: float) -> float:
        return nbytes / (self.device.bandwidth * STREAMING)

    def _conv(self, conv: Conv) -> float:
        size = ITEM_SIZE[conv.dtype]
        x, w, y = (prod(shape) * size for shape in (conv.input, conv.weight, conv.output))
        flops = 2 * prod(conv.output) * prod(conv.weight[1:])
        work = max(flops / self._rate(conv.dtype, tensor_float=True), self._moved(x + w + y))
        if conv.weight_last:
            return work + (0 if conv.input_last else self._moved(2 * x))
        converts = conv.dtype != "float32" and not conv.input_last
        return work + (self._moved(2 * (x + y)) if converts else 0)

    def _attention(self, a: Attention) -> float:
        rows, item = a.batch * a.heads, ITEM_SIZE[a.dtype]
        flops = 2 * rows * a.queries * a.keys * (a.head_size + a.value_size)
        inputs = rows * item * (2 * a.queries * a.head_size + a.keys * (a.head_size + a.value_size))
        backend = attention.chosen(a, self.device.compute_capability)
        if backend == "math":  # products in fp32, and the scores pass through memory about eight times
            return flops / self._rate("float32") + self._moved(inputs * 3 + rows * a.queries * a.keys * 4 * 8)
        if backend == "sliced":
            return flops / self._rate(a.dtype) + self._moved(inputs * 2 + rows * a.queries * a.keys * item * 6)
        extra = 2 * inputs if backend == "xformers" else 0
        return max(flops / self._rate(a.dtype), self._moved(inputs)) + self._moved(extra)
