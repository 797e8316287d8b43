"""Kernels of a program: what each computes and moves, whatever the card.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "float16", "bfloat16"]
Layout = Literal["contiguous", "channels_last"]
ITEM_SIZE: dict[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int8": 1, "bool": 1}


@dataclass(frozen=True, slots=True)
class Plain:
    """A kernel priced by its traffic and FLOPs alone, such as an addition, a norm or a copy."""

    name: str
    flops: int
    traffic: int
    """Bytes read and written."""
    scratch: int = 0
    """Bytes the kernel holds beyond inputs and outputs while it runs."""


@dataclass(frozen=True, slots=True)
class Reduction(Plain):
    """A sum, mean or norm; what it holds hangs on the card."""

    results: int = 1
    """Numbers that come out."""
    values: int = 1
    """Numbers that go into each."""
    along: bool = True
    """Whether the values of one result lie closer than results do."""
    vector: int = 1
    """Values that a thread loads at once."""
    item: int = 4
    """Bytes of a number while it is worked out."""


@dataclass(frozen=True, slots=True)
class Matmul:
    """A matrix product (cuBLAS); `flops` counts two per multiply-add."""

    dtype: str
    flops: int
    traffic: int
    shape: tuple[int, ...] = ()
    """Products in the batch, rows, columns and depth; empty where unknown."""


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution (cuDNN).  Shapes are logical (N, C, *space), whatever the layout in memory."""

    dtype: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int = 1
    input_last: bool = False
    weight_last: bool = False
    padding: tuple[int, ...] = ()
    """Empty: what `output` says it is."""
    dilation: tuple[int, ...] = ()
    """Empty: ones."""
    transposed: bool = False
    copied: bool = False
    """The input lies otherwise in memory than the layout it runs in; torch copies it first."""
    handed_on: bool = False
    """The input is channels-last only because an earlier convolution left it so, as cuDNN does."""
    scattered: bool = False
    """The input lies neither row by row nor in channels-last, as part of a larger tensor does."""


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(QKᵀ)V, kept symbolic so that its backend is a choice that costs no second trace."""

    dtype: str
    batch: int
    heads: int
    queries: int
    keys: int
    head_size: int
    value_size: int
    mask: Literal["none", "bool", "float"] = "none"
    mask_size: int = 0
    """Elements of the mask, those it is expanded to included."""
    mask_columns: int = 0
    """Its last dimension."""
    mask_aligned: bool = True
    """All its strides but the last are multiples of eight."""
    causal: bool = False
    apart: str = "qkv"
    """Which of queries, keys and values lie row by row, so that a head of one image is not next to the one before."""
    backend: str = "auto"
    """auto, flash, efficient, cudnn, math, xformers or sliced."""
    switchable: bool = True
    """False where diffusers cannot change the backend of this module (text encoders)."""


Kernel = Plain | Reduction | Matmul | Conv | Attention
