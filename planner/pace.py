"""Pace: how long a kernel and a transfer take on a card.

The card and the host that feeds it are two clocks.  `Pace.kernel` is the card's: the longer of arithmetic and traffic,
and a tail.  `Pace.issue` is the host's: what Python and torch take to launch the kernel.  The host runs ahead, so a
stretch of the program takes the longer of the two; `planner.cost` has both pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from planner import attention, host
from planner.device import Device
from planner.efficiency import FITTED, Efficiency
from planner.events import Source
from planner.kernels import ITEM_SIZE, Attention, Conv, Kernel, Matmul, Plain

RETURN = 0.5
"""Share of that rate back to ordinary memory, whose pages must be made first: model offload takes FLUX.1's 33.7 GB
there and back in 8 s (H100), 15.1 (huggingface/diffusers#11682) and 17 (RTX 4090), SDXL's 7 GB in 4.7 (A100)."""
DISK = 1.4e9
"""Bytes/s from an NVMe drive through a mapped file, as safetensors reads: 4.1 GB took 2.9 s longer than from the page
cache (pegainfer-project/pegainfer#26, a laptop).  A drive that reads ahead gives more, one behind WSL far less
(safetensors/safetensors#729)."""
LEAF_SECONDS = 75e-6
"""Hook and copy set-up of one leaf under sequential offload (50–100 µs of accelerate's Python)."""
GRAPH_SECONDS = {"none": 0.0, "jit": 5.0, "compile": 67.4, "regional": 9.6, "graphs": 67.4}
"""One-time cost; FLUX.1-dev on an H100: 67.4 s whole, 9.6 s by repeated block (diffusers' figures)."""
COMPILED = ("compile", "regional", "graphs")
"""Ways of running in which inductor fuses elementwise kernels; `graphs` are CUDA graphs on top."""
PYTHON = {"none": 1.0, "jit": 0.7, "compile": 0.25, "regional": 0.25, "graphs": 0.0}
"""Share of the host's time per launch: a graph spares the modules' Python, inductor's wrapper torch's dispatcher too,
and a CUDA graph is launched whole."""
ISSUES = {Plain: 0.37, Conv: 3.3, Matmul: 1.43, Attention: 1.43}
"""Times the mean over a U-Net that one operation takes of the host: for elementwise ones no module is called, for
convolutions cuDNN is asked.  Of six U-Nets on one A100, which all waited for the host, it says the seconds within 4 %
(19.5, 172 and 75 µs); Stable Diffusion 1.5 has 510, 98 and 216 of them."""
GUARDS = 50
"""Launches that the host could make while it looks whether a compiled graph may serve once more, and hands it its
inputs: what such a step takes more than its kernels on the same A100, about 2.7 ms."""
VIEWS = ("_unsafe_view",)
"""Operations that launch nothing though torch does not call them views."""
NORMS = ("native_group_norm", "native_layer_norm", "_fused_rms_norm", "_softmax", "_safe_softmax")
WATTS = {(8, 0): 0.68e12, (8, 9): 1.2e12, (9, 0): 1.13e12}
"""FLOP/s for each watt in half precision, by compute capability: A100 271 TFLOP/s at 400 W, H100 794 at 700 W
(stas00's achievable matmul), L4 87 at 72 W; cards with less power than tensor cores run at that."""
WINOGRAD = 1.5
"""Gain of fp32 convolutions of 3×3 without TF32: they take 2.25 times fewer multiplications (arXiv:1509.09308), and
transforms take part of that back."""
TILES = ((128, 128, 1.0), (64, 128, 0.9), (64, 64, 0.75))
"""Rows and columns of the blocks in which a product is computed, and the share of the rate they allow: a smaller block
reads its operands more often (CUTLASS's tile shapes; operands read for each product are 1, 1.5 and 2 to the first)."""
SPLIT = 0.25
"""Least share of the multiprocessors kept busy: small products are split along their depth."""
NARROW = ((6, 0), (7, 0), (7, 5), (8, 0))
"""Compute capabilities with 64 fp32 units in a multiprocessor, where others have 128 (CUDA C++ Programming Guide)."""
EXPONENTIALS = 16
"""Exponentials that a multiprocessor works out in a cycle (CUDA C++ Programming Guide, arithmetic instructions)."""
CORE = 20e9
"""FLOP/s of one core in a decode, all in: Stable Diffusion's ran at 37 to 56 GFLOP/s on two cores of an AMD EPYC with
AVX-512 (torch 2.14, 256² to 512², other work beside it)."""
HEADS = (32, 64, 96, 128, 192, 256)
"""Head sizes for which fused attention kernels exist; others are padded to the next."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds on one device, for one way of running."""

    device: Device
    tracing: str = "none"
    reached: Efficiency = FITTED

    def kernel(self, kernel: Kernel) -> float:
        """Seconds of one kernel on the card."""
        match kernel:
            case Plain():
                return self._plain(kernel)
            case Matmul():
                measured = self.device.singles if kernel.dtype == "float32" else self.device.products
                work = self._product(kernel) / measured
            case Conv():
                work = self._conv(kernel) / self.device.convolutions
            case Attention():
                work = self._attention(kernel) / self.device.attentions
        return work + self.reached.tail

    def issue(self, kernel: Kernel) -> float:
        """Seconds of the host to launch one kernel."""
        each = self._launch() * PYTHON[self.tracing]
        if isinstance(kernel, Plain):
            return each * ISSUES[Plain] * self._left()
        return each * ISSUES[type(kernel)]

    def entry(self) -> float:
        """Seconds of the host before a component begins."""
        return self._launch() * GUARDS if self.tracing in COMPILED else 0.0

    def load(self, nbytes: int, leaves: int, *, whole: bool, source: Source = "pageable") -> float:
        """Seconds until weights have arrived from ordinary host memory or disk, as a whole or leaf by leaf."""
        read = nbytes / DISK if source == "disk" else 0.0
        return read + nbytes / self.device.pageable_rate + (0.0 if whole else LEAF_SECONDS * leaves)

    def unload(self, nbytes: int) -> float:
        """Seconds until weights are back in ordinary host memory."""
        return nbytes / (self.device.return_rate or self.device.pageable_rate * RETURN)

    def set_out(self, copies: int, nbytes: int = 0, source: Source = "pinned") -> float:
        """Seconds of the host until so many copies are under way, in which it launches no kernels.

        What does not wait in pinned memory it first copies there, at the rate of a driver that does the same.
        """
        return LEAF_SECONDS * copies + (0.0 if source == "pinned" else self.load(nbytes, 0, whole=True, source=source))

    def fetch(self, nbytes: int) -> float:
        """Seconds of one copy from pinned host memory."""
        return nbytes / self.device.pinned_rate

    def host(self, flops: int) -> float:
        """Seconds of this machine's processor for convolutions in single precision."""
        return flops / (host.cores() * CORE)

    def _launch(self) -> float:
        """Seconds of the host for one operation, in the mean over a U-Net's."""
        return self.device.issue or (self.reached.server if self.device.server else self.reached.desktop)

    def _left(self) -> float:
        """Share of elementwise kernels that fusion leaves; torch.jit fuses half of what inductor does."""
        if self.tracing == "jit":
            return (1 + self.reached.fused) / 2
        return self.reached.fused if self.tracing in COMPILED else 1.0

    def _plain(self, kernel: Plain) -> float:
        if kernel.name in VIEWS:
            return 0.0
        passes = self.reached.norms if kernel.name in NORMS else 1.0
        return (self._moved(kernel.traffic * passes) / self.device.traffic + self.reached.tail) * self._left()

    def _rate(self, dtype: str, *, tensor_float: bool = False) -> float:
        """FLOP/s of long products; those of 8-bit integers are at least as quick as those in half precision."""
        device, reached, capability = self.device, self.reached, self.device.compute_capability
        half = dtype in ("float16", "int8") or (dtype == "bfloat16" and device.native_bf16)
        if capability < (7, 0) or not (half or (tensor_float and capability >= (8, 0))):
            return device.single_rate * reached.single
        waiting = reached.feeding * device.half_rate / max(device.multiprocessors, 1)
        rate = device.half_rate / (1 / reached.product + waiting)
        watts = WATTS.get(capability, 0.0)
        if capability < (8, 0):
            rate, watts = rate * reached.before_ampere, reached.watt
        rate = min(rate, device.power * watts) if device.power and watts else rate
        return rate if half else rate / 2

    def _cycles(self) -> float:
        """Cycles a second of all multiprocessors together."""
        return self.device.single_rate / (2 * self._lanes())

    def _lanes(self) -> int:
        """Units for single precision in each."""
        return 64 if self.device.compute_capability in NARROW else 128

    def _moved(self, nbytes: float, weights: float = 0) -> float:
        """Seconds of traffic; part of it meets what the kernel before left in the cache, but not the weights."""
        reached = self.reached
        hit = min(nbytes - weights, reached.resident * self.device.l2)
        return (nbytes - hit + hit / reached.cached) / (self.device.bandwidth * reached.streaming)

    def _busy(self, batch: int, rows: int, columns: int) -> float:
        """Share of all multiprocessors' time that the blocks of a product fill, with the tile that fills it best."""
        units = max(self.device.multiprocessors, 1)
        shares = [SPLIT]
        for high, wide, rate in TILES:
            blocks = batch * ceil(rows / high) * ceil(columns / wide)
            filled = batch * rows * columns / (blocks * high * wide)
            shares.append(rate * filled * blocks / (ceil(blocks / units) * units))
        return max(shares)

    def _product(self, m: Matmul) -> float:
        if not m.shape:
            return max(m.flops / self._rate(m.dtype), self._moved(m.traffic))
        batch, rows, columns, depth = m.shape
        weights = depth * columns * ITEM_SIZE[m.dtype] if batch == 1 else 0
        return max(m.flops / (self._rate(m.dtype) * self._busy(batch, rows, columns)), self._moved(m.traffic, weights))

    def _conv(self, conv: Conv) -> float:
        size, tensor_cores = ITEM_SIZE[conv.dtype], self.device.compute_capability >= (8, 0)
        x, w, y = (prod(shape) * size for shape in (conv.input, conv.weight, conv.output))
        flops = 2 * prod(conv.output) * prod(conv.weight[1:])
        columns = conv.output[1]
        winograd = (
            conv.dtype == "float32" and not tensor_cores and conv.weight[2:] == (3, 3) and set(conv.stride) == {1}
        )
        rate = self._rate(conv.dtype, tensor_float=True) * self.reached.convolution
        rate *= self._busy(1, prod(conv.output) // columns, columns) * (WINOGRAD if winograd else 1)
        work = max(flops / rate, self._moved(x + w + y, w))
        if conv.weight_last:
            return work + (0 if conv.input_last else self._moved(2 * x))
        if conv.dtype == "float32" or conv.input_last:
            return work
        weights = 0 if prod(conv.weight[2:]) == 1 else 2 * w
        return work + self._moved(2 * (x + y) + weights, weights) + 2 * self.reached.tail

    def _attention(self, a: Attention) -> float:
        rows, item, capability = a.batch * a.heads, ITEM_SIZE[a.dtype], self.device.compute_capability
        scores = rows * a.queries * a.keys
        flops = 2 * scores * (a.head_size + a.value_size)
        inputs = rows * item * (2 * a.queries * a.head_size + a.keys * (a.head_size + a.value_size))
        backend = attention.chosen(a, capability)
        if backend == "math":  # products in fp32, and copies of all inputs
            passes = self.reached.unfused * scores * ITEM_SIZE["float32"]
            return flops / self._rate("float32") + self._moved(inputs * 3 + passes)
        if backend in ("sliced", "unfused"):
            return flops / self._rate(a.dtype) + self._moved(inputs * 2 + self.reached.unfused * scores * item)
        copies = 0
        if backend == "xformers":  # copies of q, k and v, then torch's kernels
            copies = 2 * inputs
            backend = "flash" if attention.usable(a, "flash", capability) else "efficient"
        share = 1.0
        if backend == "efficient":
            large = a.value_size > attention.WIDE_HEAD or capability < (8, 0)
            share = self.reached.wide if large else self.reached.efficient
        products = 2 * scores * (_padded(a.head_size) + _padded(a.value_size)) / (self._rate(a.dtype) * share)
        busy = products + scores * (1 / EXPONENTIALS + self.reached.softmax / self._lanes()) / self._cycles()
        return max(busy, self._moved(inputs)) + self._moved(copies)


def _padded(head: int) -> int:
    return next((size for size in HEADS if size >= head), head)
