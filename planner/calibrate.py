"""Calibrate: measure a card and its host in under two minutes, for the time model.

Kernels are the ones the model prices, so what is kept is their measured speed ÷ the expected one; it holds for all
shapes.  Copies, launches and the context are kept as they are measured; what convolutions take is `samples`'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from planner import samples
from planner.calibration import Calibration
from planner.device import Device
from planner.kernels import ITEM_SIZE, Attention, Conv, Kernel, Matmul, Plain
from planner.pace import Pace

if TYPE_CHECKING:
    import torch

LEAST = 0.3
"""Seconds a measurement lasts at least, so that clocks and caches settle."""
COPY = 2**29
"""Bytes of a copy: longer than any latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where to measure, and how large; a CPU takes the place of a card in tests of the clock."""

    place: str = "cuda"
    scale: int = 1
    """Sizes are divided by it."""
    least: float = LEAST

    def seconds(self, run: Callable[[], object], least: float | None = None) -> float:
        """Seconds of one `run`, by enough of them in a row; the first two only warm up."""
        run()
        run()
        times = 1
        while True:
            self.settle()
            start = time.perf_counter()
            for _ in range(times):
                run()
            self.settle()
            spent = time.perf_counter() - start
            if spent >= (self.least if least is None else least) or times >= 2**16:
                return max(spent / times, 1e-9)
            times *= 2

    def settle(self) -> None:
        """Wait until everything launched is done."""
        import torch

        if self.place.startswith("cuda"):
            torch.cuda.synchronize()

    def tensor(self, *shape: int, dtype: str = "float16") -> torch.Tensor:
        """Small random numbers: power, and with it the clock, depends on what is computed."""
        import torch

        made: torch.Tensor = torch.randn(shape, device=self.place).to(getattr(torch, dtype)).mul_(0.1)
        return made


def calibrate(device: Device, bench: Bench | None = None, free: int | None = None) -> Calibration:
    """Measure the card torch computes on, which is `device`.

    `free`: bytes NVML called free before this process touched the card, to tell what its context takes.
    """
    bench = bench or Bench()
    plain = replace(device, products=1.0, singles=1.0, convolutions=1.0, attentions=1.0, traffic=1.0)
    speeds = {name: _speed(plain, bench, *job) for name, job in _jobs(bench).items()}
    return Calibration(
        device_name=device.name, made=_made(), issue=_issue(bench), context=_context(device, bench, free),
        scratch=samples.measured(device, bench.place), **speeds, **_copies(bench),
    )  # fmt: skip


def _jobs(bench: Bench) -> dict[str, tuple[Kernel, Callable[[], object]]]:
    """A kernel of each kind as the model sees it, and what runs it."""
    import torch
    from torch.nn import functional

    n, channels, edge, tokens = 4096 // bench.scale, 640 // bench.scale, 64 // bench.scale, 4096 // bench.scale
    a, b, wide = bench.tensor(n, n), bench.tensor(n, n), bench.tensor(n, n, dtype="float32")
    x = bench.tensor(4, channels, edge, edge).contiguous(memory_format=torch.channels_last)
    w = bench.tensor(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    q = bench.tensor(2, 10, tokens, 64)
    conv = Conv("float16", tuple(x.shape), tuple(w.shape), tuple(x.shape), (1, 1), input_last=True, weight_last=True)
    return {
        "products": (_product("float16", n), lambda: a @ b),
        "singles": (_product("float32", n), lambda: wide @ wide),
        "convolutions": (conv, lambda: functional.conv2d(x, w, padding=1)),
        "attentions": (
            Attention("float16", 2, 10, tokens, tokens, 64, 64),
            lambda: functional.scaled_dot_product_attention(q, q, q),
        ),
        "traffic": (Plain("add", 0, 3 * n * n * 4), lambda: torch.add(wide, wide, out=wide)),
    }


def _product(dtype: str, n: int) -> Matmul:
    return Matmul(dtype, 2 * n**3, 3 * n * n * ITEM_SIZE[dtype], (1, n, n, n))


def _speed(device: Device, bench: Bench, kernel: Kernel, run: Callable[[], object]) -> float:
    return Pace(device).kernel(kernel) / bench.seconds(run)


def _issue(bench: Bench) -> float:
    """Seconds of the host for one operation as diffusers' models launch it, with the Python around: a U-Net so small
    that the card is never what is waited for, its forward ÷ its operations.
    """
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    small = {"block_out_channels": (32, 64), "cross_attention_dim": 32, "attention_head_dim": 8, "norm_num_groups": 8}
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(sample_size=8, down_block_types=down, up_block_types=up, **small)
    unet = unet.to(bench.place).eval()
    x, text = bench.tensor(2, 4, 8, 8, dtype="float32"), bench.tensor(2, 8, 32, dtype="float32")
    with torch.no_grad():
        with _counting() as operations:
            unet(x, 1, text)
        return bench.seconds(lambda: unet(x, 1, text)) / len(operations)


@contextmanager
def _counting() -> Iterator[list[Any]]:
    """The operations that launch something, as the recorder counts them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[Any] = []

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                seen.append(func)
            return func(*args, **(kwargs or {}))

    with Counting():  # type: ignore[no-untyped-call]
        yield seen


def _copies(bench: Bench) -> dict[str, float]:
    """Bytes/s each way."""
    import torch

    size = COPY // bench.scale
    here: Any = torch.ones(size, dtype=torch.uint8)
    there = here.to(bench.place, copy=True)
    rates = {
        "pageable_rate": size / bench.seconds(lambda: there.copy_(here)),
        "return_rate": size / bench.seconds(lambda: there.to("cpu", copy=True)),
    }
    if bench.place.startswith("cuda"):
        fixed = here.pin_memory()
        rates["pinned_rate"] = size / bench.seconds(lambda: there.copy_(fixed, non_blocking=True))
        rates["pinned_return_rate"] = size / bench.seconds(lambda: fixed.copy_(there, non_blocking=True))
    return rates


def _context(device: Device, bench: Bench, free: int | None) -> int:
    """Bytes that left the card with this process and are not torch's; 0 where it was not looked at before."""
    import torch

    if free is None or not bench.place.startswith("cuda"):
        return 0
    from planner.probe import probe_one

    now = probe_one(device.uuid or 0)
    return max(free - now.free - torch.cuda.memory_reserved(), 0)


def _made() -> str:
    import torch

    day = datetime.now(tz=timezone.utc).date().isoformat()
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{day} with torch {torch.__version__}" + (f", cuDNN {cudnn}" if cudnn else "")
