"""Attention backends: which one torch takes, and what each asks of the allocator beyond q, k, v and the output.

Sources: aten/native/transformers (sdp_utils.cpp, attention.cu, flash_api.cpp) and diffusers' attention processors; the
order of requests was read off the allocator's own history on the virtual GPU (torch 2.14.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from planner.device import Device
from planner.kernels import ITEM_SIZE, Attention

FLASH_HEAD = 256
"""Largest head size of the flash kernels."""
CUDNN_HEAD = {9: 256, 10: 256}
"""Largest head size of cuDNN's kernels (9.22 and later) by major version; elsewhere 128."""
WIDE_HEAD = 128
"""Head size from which the memory-efficient kernel keeps its accumulator in memory when inputs are half."""
GRAIN = 8
"""Numbers to which torch pads heads for flash, and the rows of a mask for the memory-efficient kernel."""
FLASH_ROWS = 64
"""Queries of one block of the split flash kernel (flash_api.cpp, set_params_splitkv)."""
FULL = 0.8
"""Share of the blocks a card runs at once from which flash does not split the keys."""
MOST_SPLITS = 128
SEEDED = frozenset({"flash", "efficient", "cudnn", "xformers"})
"""Backends that are torch's own kernels, which return what random numbers they began with, dropout or not."""
EARLY = frozenset({"efficient", "cudnn"})
"""Those of them that ask for their output last of all but room to accumulate in."""
LIKE_QUERIES = frozenset({"flash", "flash_attn", "flash_hub", "flash_3", "flash_3_hub", "flash_4_hub", "cudnn"})
"""Those whose output lies as queries do (`at::empty_like`, `alloc_with_matching_layout`)."""
SAGE_HEADS = (64, 128)
"""Head sizes of SageAttention's kernels; smaller heads are padded."""
SAGE_KEYS = 128
"""Keys to which it pads values at most."""


def usable(attention: Attention, backend: str, compute_capability: tuple[int, int]) -> bool:
    """Whether the kernels of `backend` take this attention on such a card."""
    half = attention.dtype in ("float16", "bfloat16")
    ampere = compute_capability >= (8, 0)
    match backend:
        case "flash" | "flash_attn" | "flash_hub" | "flash_3" | "flash_3_hub" | "flash_4_hub":
            same = attention.head_size == attention.value_size
            return half and ampere and same and attention.mask == "none" and attention.head_size <= FLASH_HEAD
        case "cudnn":
            aligned = attention.head_size % GRAIN == 0 and attention.value_size % GRAIN == 0 and attention.keys > 1
            largest = CUDNN_HEAD.get(compute_capability[0], 128)
            return half and ampere and aligned and attention.head_size <= largest
        case "efficient" | "xformers":
            sizes = attention.head_size, attention.value_size
            aligned = not any(size % (GRAIN if half else GRAIN // 2) for size in sizes)
            return aligned and (attention.dtype != "bfloat16" or ampere)
    if backend.startswith("sage"):
        return half and ampere and attention.mask == "none" and attention.head_size <= SAGE_HEADS[-1]
    return backend in ("math", "sliced", "unfused")


def chosen(attention: Attention, compute_capability: tuple[int, int]) -> str:
    """The backend that runs: the one asked for where it can, else torch's own order.

    One of torch's own is asked for by switching off those before it, so what it cannot serve comes to those after it.
    """
    if attention.backend != "auto" and usable(attention, attention.backend, compute_capability):
        return attention.backend
    first = ("cudnn",) if compute_capability[0] in (9, 10) else ()
    order = (*first, "flash", "efficient")
    if attention.backend in order:
        order = order[order.index(attention.backend) + 1 :]
    return next((b for b in order if usable(attention, b, compute_capability)), "math")


def requests(attention: Attention, device: Device) -> tuple[int, ...]:
    """Bytes in the order they are asked for beyond inputs and output; ~n gives the n-th request back.

    Where the caller copies what a fused kernel gave, the copy is the output, and `_given` comes on top of these.
    """
    backend = chosen(attention, device.compute_capability)
    if backend == "xformers":  # runs torch's kernels, the flash one first (xformers.ops.fmha.dispatch)
        backend = "flash" if usable(attention, "flash", device.compute_capability) else "efficient"
    match backend:
        case "flash" | "flash_attn" | "flash_hub" | "flash_3" | "flash_3_hub" | "flash_4_hub":
            return (*_padded(attention), *_flash(attention, device.multiprocessors))
        case "unfused":  # diffusers' processors before torch 2: scores and their softmax, in the inputs' dtype
            a = attention
            return (a.batch * a.heads * a.queries * a.keys * ITEM_SIZE[a.dtype],) * 2
        case "sliced":
            return tuple(_sliced(attention))
        case "math":
            return _math(attention)
    if backend.startswith("sage"):
        return tuple(_sage(attention))
    fused = tuple(_fused(attention, backend))
    return tuple(_copied(attention, fused)) if _copies(attention, backend) else fused


def seeds(attention: Attention, device: Device) -> tuple[int, ...]:
    """Bytes of the seed and the offset of a kernel's random numbers, which come on top of what it requests."""
    backend = chosen(attention, device.compute_capability)
    return ((8, 8) if backend in EARLY else (16, 8)) if backend in SEEDED else ()


def in_order(attention: Attention, device: Device) -> tuple[int, ...]:
    """All that it requests, seeds included."""
    if _lies_apart(attention, device):
        return tuple(_given(attention, device))
    own, seeded = requests(attention, device), seeds(attention, device)
    first = late(attention, device)[0] - len(seeded) if _is_early(attention, device) else len(own)
    return *own[:first], *seeded, *own[first:]


def late(attention: Attention, device: Device) -> tuple[int, int]:
    """How many of these come before the output, and the bytes of that; zeros where it is there from the beginning."""
    a, backend = attention, chosen(attention, device.compute_capability)
    output = a.batch * a.heads * a.queries * a.value_size * ITEM_SIZE[a.dtype]
    if _lies_apart(a, device):
        return len(in_order(a, device)), output
    own = len(requests(a, device))
    if _is_early(a, device):
        return own - _accumulates(a, backend) + len(seeds(a, device)), output
    return (own + len(seeds(a, device)), output) if backend == "math" or _copies(a, backend) else (0, 0)


def is_copied(a: Attention, device: Device) -> bool:
    """Whether the output is the caller's copy of what the kernel gave.

    diffusers gives that the name of the hidden states it was made from before it copies: so those go first.
    """
    backend = chosen(a, device.compute_capability)
    return (backend == "math" and a.heads > 1) or _copies(a, backend) or _lies_apart(a, device)


def _lies_apart(a: Attention, device: Device) -> bool:
    """Whether what a kernel gives is not row by row: it lies as queries do, or is padded.  The caller copies it."""
    backend = chosen(a, device.compute_capability)
    if backend not in LIKE_QUERIES or _copies(a, backend) or 1 in (a.heads, a.queries):
        return False
    return "q" not in a.apart or (backend != "cudnn" and a.head_size % GRAIN > 0)


def _is_early(a: Attention, device: Device) -> bool:
    """Whether masks are made ready and seeds taken before there is an output."""
    backend = chosen(a, device.compute_capability)
    return backend in EARLY and not _copies(a, backend)


def _accumulates(a: Attention, backend: str) -> bool:
    return backend == "efficient" and ITEM_SIZE[a.dtype] == 2 and a.value_size > WIDE_HEAD


def _given(a: Attention, device: Device) -> Iterator[int]:
    """What a kernel asks for, its output among it, and all but that given back."""
    seeded = seeds(a, device)
    if chosen(a, device.compute_capability) == "cudnn":
        before = (*_fused(a, "cudnn"), *seeded)
        yield from (*before, _output(a))
        yield from (~n for n in range(sum(size >= 0 for size in before)) if ~n not in before)
    else:
        pads, beside = _pads(a), (*_flash(a, device.multiprocessors), *seeded)
        yield from (*pads, _output(a), *beside)
        yield from (~(len(pads) + 1 + n) for n in range(len(beside)))
        yield from (~n for n in range(len(pads)))


def _output(a: Attention) -> int:
    """Bytes of the output, padded where flash pads it."""
    return a.batch * a.heads * a.queries * _up(a.value_size, GRAIN) * ITEM_SIZE[a.dtype]


def _pads(a: Attention) -> tuple[int, ...]:
    """Queries, keys and values as flash wants them, where they are copied for that."""
    if a.head_size % GRAIN == 0:
        return ()
    rows = a.batch * a.heads * _up(a.head_size, GRAIN) * ITEM_SIZE[a.dtype]
    return rows * a.queries, rows * a.keys, rows * a.keys


def _padded(a: Attention) -> Iterator[int]:
    """Those, and what the output is longer by."""
    if pads := _pads(a):
        yield from pads
        yield a.batch * a.heads * a.queries * (_up(a.head_size, GRAIN) - a.head_size) * ITEM_SIZE[a.dtype]


def _flash(a: Attention, multiprocessors: int) -> Iterator[int]:
    rows = a.batch * a.heads
    yield rows * a.queries * 4  # log-sum-exp, always fp32
    if (splits := _splits(a, multiprocessors)) > 1:
        wide = _up(a.head_size, 32 if a.head_size <= 128 else 64)
        yield from (splits * rows * a.queries * 4, splits * rows * a.queries * wide * 4)


def _splits(a: Attention, multiprocessors: int) -> int:
    """Parts into which flash divides the keys where queries are too few to fill the card (num_splits_heuristic)."""
    column = 256 if a.head_size <= 64 else 128 if a.head_size <= 128 else 64
    blocks, columns = a.batch * a.heads * ceil(a.queries / FLASH_ROWS), ceil(a.keys / column)
    room = 2 * multiprocessors
    if blocks >= FULL * room:
        return 1
    able = [n for n in range(1, min(MOST_SPLITS, room, columns) + 1)
            if n == 1 or ceil(columns / n) != ceil(columns / (n - 1))]  # fmt: skip
    shares = [blocks * n / room / ceil(blocks * n / room) for n in able]
    return next(n for n, share in zip(able, shares, strict=True) if share >= 0.85 * max(shares))


def _sage(a: Attention) -> Iterator[int]:
    """At most: padded copies; keys less their mean; int8 queries and keys with scales; values laid anew, and in fp8.

    SageAttention 2.2's core.py and quant.py; which of these a card's kernel makes differs.
    """
    item, rows = ITEM_SIZE[a.dtype], a.batch * a.heads
    wide = next(size for size in SAGE_HEADS if size >= a.head_size)
    queries, keys = rows * a.queries * wide, rows * _up(a.keys, SAGE_KEYS) * wide
    if wide > a.head_size:
        yield from (queries * item, keys * item, keys * item)
        yield rows * a.queries * (wide - a.head_size) * item  # the output is padded, too
    yield from (keys * item, queries, rows * a.queries, keys, rows * a.keys)
    yield from (keys * item, keys)


def _fused(a: Attention, backend: str) -> Iterator[int]:
    """CuDNN's and the memory-efficient kernel; the latter wants rows of masks aligned."""
    item = ITEM_SIZE[a.dtype]
    uneven = backend == "efficient" and bool(a.mask_columns % GRAIN if a.mask == "bool" else not a.mask_aligned)
    padded = a.mask_size // max(a.mask_columns, 1) * _up(a.mask_columns + (a.mask_columns % GRAIN == 0), GRAIN) * item
    if a.mask == "bool":  # becomes numbers: one of two
        yield from (item, item, a.mask_size * item, ~0, ~1)
    if a.mask != "none" and uneven:
        yield padded
        if a.mask == "bool":
            yield ~2
    if _accumulates(a, backend):
        yield a.batch * a.heads * a.queries * a.value_size * 4


def _copies(a: Attention, backend: str) -> bool:
    """Whether diffusers copies queries, keys and values, which it does for cuDNN where that was asked for (0.42.1)."""
    return backend == a.backend == "cudnn" and a.heads > 1


def _copied(a: Attention, asked: Sequence[int]) -> Iterator[int]:
    """What comes of copies lies head by head as they do, and the caller copies it to where rows are whole."""
    item, rows = ITEM_SIZE[a.dtype], a.batch * a.heads
    copies = [rows * n * item for n in (a.queries * a.head_size, a.keys * a.head_size, a.keys * a.value_size)]
    yield from copies
    yield rows * a.queries * a.value_size * item
    yield from (size - len(copies) - 1 if size < 0 else size for size in asked)
    yield from (~n for n in (2, 1, 0))


def _sliced(a: Attention) -> Iterator[int]:
    """Its copies of q, k and v take the places of the originals."""
    item = ITEM_SIZE[a.dtype]
    yield from (a.queries * a.keys * item,) * 2  # one head's scores, and their softmax
    yield a.queries * a.value_size * item  # what the head before gave


def _math(a: Attention) -> tuple[int, ...]:
    """fp32 copies, scores, their softmax, and which of them are -inf (_scaled_dot_product_attention_math).

    What comes of it lies head by head; the caller copies it to where rows are whole, unless there is one head.
    """
    item, rows = ITEM_SIZE[a.dtype], a.batch * a.heads
    q, k, v = (rows * n * 4 for n in (a.queries * a.head_size, a.keys * a.head_size, a.keys * a.value_size))
    scores, out = rows * a.queries * a.keys, rows * a.queries * a.value_size
    apart = a.apart if a.batch > 1 and a.heads > 1 else ""  # a product wants its batches in one row, and copies them
    half = item == 2
    asked: list[int] = []

    def ask(*sizes: int) -> tuple[int, ...]:
        first = sum(size >= 0 for size in asked)
        asked.extend(sizes)
        return tuple(range(first, first + len(sizes)))

    def give_back(*numbers: int) -> None:
        asked.extend(~number for number in reversed(numbers))

    ask(*((a.mask_size * item,) if a.mask == "bool" else ()))  # becomes numbers
    ask(*((q, k, v) if half else ()), q, *((a.queries * a.keys * 4,) if a.causal else ()))
    copies = ask(k, *((q,) if "q" in apart else ()), *((k,) if "k" in apart else ()))
    first = ask(scores * 4)
    give_back(*copies)
    ask(scores * 4)
    give_back(*ask(scores, rows * a.queries, 4))  # which scores are -inf, of which rows all are, and a zero
    give_back(*first)
    rounded = ask(*((scores * 2,) if half else ()))  # a result, too, which goes when all else has
    copies = ask(*((v,) if "v" in apart else ()))
    if half:
        ask(out * 4)
        give_back(*copies)
    if a.heads > 1:
        (made,) = ask(out * item)
        left = [number for number in range(made) if ~number not in asked and number not in rounded]
        give_back(*rounded, *left)
    return tuple(asked)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
