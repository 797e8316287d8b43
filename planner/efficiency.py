"""Efficiency: what kernels reach of a card's peaks.  One set of figures for all; a card's own are in its profile.

Fitted by `python benchmarks/time_fit.py` to published timings; benchmarks/results/time.md says how well they hold.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of peaks, and seconds that do not depend on the card."""

    product: float = 0.98
    """Share of the tensor cores' peak that long matrix products reach where operands come for free."""
    feeding: float = 9.68e-14
    """Added to its inverse for each FLOP/s of a multiprocessor: the quicker tensor cores are, the longer they wait for
    operands."""
    before_ampere: float = 0.878
    """Share left on Volta and Turing, which cannot copy to shared memory beside their arithmetic."""
    convolution: float = 0.946
    """Convolutions against products of the same size."""
    single: float = 0.975
    """Share of the fp32 peak outside tensor cores."""
    efficient: float = 0.831
    """The memory-efficient attention kernel against the flash one, on Ampere and later for heads of up to 128."""
    wide: float = 0.344
    """The same for larger heads, whose sums it keeps in memory, and before Ampere."""
    softmax: float = 8.89
    """Operations of the fp32 units for each score of fused attention which tensor cores cannot hide, beside its
    exponential."""
    unfused: float = 6
    """Times the scores pass through memory where attention is written as product, softmax, product."""
    streaming: float = 0.75
    """Share of the memory bandwidth that kernels reach."""
    resident: float = 0.139
    """Share of the second-level cache that still holds what the kernel before wrote."""
    cached: float = 6
    """Bandwidth of that cache against the memory's."""
    norms: float = 2.21
    """Times the traffic of a normalisation, which reads its input twice."""
    tail: float = 4e-06
    """Seconds of the card between two kernels, and until the first one's blocks are all under way."""
    watt: float = 3.17e11
    """FLOP/s for each watt on Volta and Turing, in half precision."""
    server: float = 5.36e-05
    """Seconds of a server's core to launch an operation from Python, in the mean over a U-Net's."""
    desktop: float = 1.36e-05
    """The same on a desktop."""
    fused: float = 0.1
    """Share of elementwise kernels, and of their traffic, that torch.compile leaves."""


FITTED = Efficiency()
