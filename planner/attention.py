"""Attention backends: which one torch takes, and what each holds beyond q, k, v and the output.

Sources: aten/native/transformers (sdp_utils.cpp, attention.cu) and diffusers' attention processors.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.program import ITEM_SIZE, Attention

FLASH_HEAD = 256
"""Largest head size of the flash kernels."""
CUDNN_HEAD = 128
"""Largest head size of cuDNN's kernels."""
WIDE_HEAD = 128
"""Head size from which the memory-efficient kernel keeps its accumulator in memory when inputs are half."""


def usable(attention: Attention, backend: str, compute_capability: tuple[int, int]) -> bool:
    """Whether the kernels of `backend` take this attention on such a card."""
    half = attention.dtype in ("float16", "bfloat16")
    ampere = compute_capability >= (8, 0)
    match backend:
        case "flash":
            same = attention.head_size == attention.value_size
            return half and ampere and same and attention.mask == "none" and attention.head_size <= FLASH_HEAD
        case "cudnn":
            aligned = attention.head_size % 8 == 0 and attention.keys > 1
            return half and ampere and aligned and attention.head_size <= CUDNN_HEAD
        case "efficient" | "xformers":
            return attention.dtype in ("float32", "float16") or (attention.dtype == "bfloat16" and ampere)
    return backend in ("math", "sliced")


def chosen(attention: Attention, compute_capability: tuple[int, int]) -> str:
    """The backend that runs: the one asked for where it can, else torch's own order."""
    if attention.backend != "auto" and usable(attention, attention.backend, compute_capability):
        return attention.backend
    first = ("cudnn",) if compute_capability[0] in (9, 10) else ()
    order = (*first, "flash", "efficient")
    return next((b for b in order if usable(attention, b, compute_capability)), "math")


def scratch(attention: Attention, compute_capability: tuple[int, int]) -> tuple[int, ...]:
    """Bytes of each temporary alive at the worst moment, beyond inputs and output, in the order they are asked for."""
    backend = chosen(attention, compute_capability)
    if backend == "xformers":  # runs torch's kernels, the flash one first (xformers.ops.fmha.dispatch)
        backend = "flash" if usable(attention, "flash", compute_capability) else "efficient"
    return tuple(size for size in _temporaries(attention, backend) if size)


def _temporaries(a: Attention, backend: str) -> Iterator[int]:
    item = ITEM_SIZE[a.dtype]
    rows = a.batch * a.heads
    q, k = rows * a.queries * a.head_size, rows * a.keys * a.head_size
    v, out, scores = rows * a.keys * a.value_size, rows * a.queries * a.value_size, rows * a.queries * a.keys
    match backend:
        case "flash" | "cudnn":
            yield rows * a.queries * 4  # log-sum-exp, always fp32
            if a.head_size % 8:
                padded = -(-a.head_size // 8) * 8
                yield (q + 2 * k) // a.head_size * padded * item
        case "efficient":
            if item == 2 and a.value_size > WIDE_HEAD:
                yield out * 4
            if a.mask == "bool":
                yield a.mask_size * item
        case "sliced":  # its copies of q, k and v take the places of the originals
            yield from (a.queries * a.keys * item,) * 2  # one head's scores, and their softmax
            yield a.queries * a.value_size * item  # what the head before gave
        case "math":
            if item == 2:
                yield from (q * 4, k * 4, v * 4)
            yield from (q * 4, scores * 4)
            yield max(scores * 4 - out * item, 0)  # softmax writes anew, and the output is not there yet
            yield scores  # which of them are -inf
