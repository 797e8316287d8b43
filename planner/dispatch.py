"""What torch dispatches while a ghost runs, told to the recorder as kernels and lives of storages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import prod
from types import FrameType
from typing import Any, Literal

import numpy
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from planner import composites, metas
from planner.ghost import LARGE
from planner.kernels import Attention, Conv, Kernel, Matmul, Plain, Reduction
from planner.metas import tensors
from planner.recorder import Recorder
from planner.reduction import layout
from planner.strides import channels_last, hand_on, is_handed_on

aten = torch.ops.aten

PRODUCTS = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
    aten.addbmm.default: 1,
    aten._int_mm.default: 0,
}
"""Matrix products and the position of their first factor."""
REDUCTIONS = {aten.sum.dim_IntList: 1, aten.mean.dim: 1, aten.linalg_vector_norm.default: 2}
"""Operations over dimensions and the position in which these are named."""
RANDOM = {aten.randn.default, aten.randn.generator, aten.rand.default, aten.rand.generator}
FACTORIES = RANDOM | {aten.zeros.default, aten.ones.default, aten.empty.memory_format, aten.full.default}
SILENT = {torch.ops.prim.device.default, aten.sym_size.int, aten.is_pinned.default, aten.detach.default}
NO_KERNEL = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}
SCALARS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


MAKERS = frozenset(_device_constructors())
"""What makes tensors from nothing, as Python calls it."""
HOST = "cpu"
"""How pipelines name the host; the card they name by the device their weights are on."""
MOVES = {torch.Tensor.to: (), torch.Tensor.cpu: (HOST,)}
"""Methods that move tensors, and what `to` would be told beside what they are."""
COPYING = {
    "_softmax",
    *(f"{name}{n}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
}
"""Kernels that want their input as their output lies (UpSampleNearest2d.cu, SoftMax.cu)."""
TRANSFORMS, FOURIER = {"_fft_c2c", "_fft_r2c", "_fft_c2r"}, 8
"""Fourier transforms, and how many times their result cuFFT's work area may be: up to eight for edges with large prime
factors (its documentation, cufftEstimate)."""
HUGE = 1 << 22
"""Elements from which a table that code could read back becomes a ghost all the same: masks of every pixel of a video
against every other take more than any host has."""


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Sees every operation below autograd, on ghosts and on real tensors alike."""

    def __init__(self, recorder: Recorder, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder
        self._mode = mode

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SILENT:
            return func(*args, **kwargs)
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a packed weight says what it does in terms of what it is made of
        if func in SCALARS and any(isinstance(a, FakeTensor) for a in args):
            return _zero(args[0].dtype)
        if func in FACTORIES and _makes_ghost(func, args, kwargs):
            with self._mode:
                out = func(*args, **{**kwargs, "generator": None} if "generator" in kwargs else kwargs)
        else:
            if func is aten.native_layer_norm.default and not args[0].is_contiguous():
                args = (self._copied(args[0]), *args[1:])
            out = metas.result(func, args, kwargs, self._mode)
            if out is NotImplemented:
                out = self._huge(func, args, kwargs)
            if out is NotImplemented:
                out = func(*_counted(func, args), **kwargs)
        outs = tuple(tensors(out))
        _follow(func, args, outs)
        if func.is_view:
            return out
        given = tuple(tensors((args, kwargs)))
        if any(map(_is_real, outs)) and any(on_host(t, self._recorder) for t in given):
            self._recorder.ignore(outs)
        elif not self._stays(outs, given):
            self._ran(func, args, kwargs, outs)
        return out

    def _ran(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outs: tuple[torch.Tensor, ...]) -> None:
        """Note the results and the kernel."""
        self._recorder.allocated(outs)
        beside = metas.beside_group_norm(args, self._mode) if func is aten.native_group_norm.default else []
        self._recorder.allocated(beside)
        if outs and func not in NO_KERNEL:
            self._recorder.ran(kernel_of(func, args, kwargs, outs))
        while beside:
            beside.pop()

    def _stays(self, outs: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> bool:
        """Whether the host works out a small table from small tables that lie there, or makes one."""
        if not outs or any(isinstance(tensor, FakeTensor) for tensor in outs):
            return False
        if not given:
            return self._recorder.on_host
        return all(is_outside(t, self._recorder) or on_host(t, self._recorder) for t in given)

    def _huge(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result as ghosts where real tensors would make a huge one; else NotImplemented."""
        given = list(tensors((args, kwargs)))
        if func.is_view or func._schema.is_mutable or any(isinstance(t, FakeTensor) for t in given):
            return NotImplemented
        if all(t.numel() < LARGE for t in given) or any(on_host(t, self._recorder) for t in given):
            return NotImplemented
        try:
            with self._mode:
                ghosts = func(*tree_map(self._ghost, args), **tree_map(self._ghost, kwargs))
        except (DataDependentOutputException, DynamicOutputShapeException):
            return NotImplemented
        return ghosts if any(t.numel() >= HUGE for t in tensors(ghosts)) else NotImplemented

    def _ghost(self, value: Any) -> Any:
        return self._mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.contiguous()
        self._recorder.allocated((copy,))
        self._recorder.ran(Plain(name="contiguous", flops=0, traffic=2 * nbytes(copy)))
        return copy


class Functions(TorchFunctionMode):
    """Catches what must not be taken apart or leave the ghost world: attention, and copies to the host."""

    def __init__(self, recorder: Recorder, mode: FakeTensorMode) -> None:
        super().__init__()
        self._recorder = recorder
        self._mode = mode
        self._flex: tuple[Any, Any] | None = None
        self._instead: dict[Any, Callable[..., Any]] = {
            torch.rms_norm: self._rms_norm,
            torch.nn.functional.rms_norm: self._rms_norm,
            **composites.INSTEAD,
        }

    def __enter__(self) -> Functions:
        """Flex attention is compiled, which ghosts are not: it is caught by its name, where it has been imported."""
        if (home := sys.modules.get("torch.nn.attention.flex_attention")) is not None:
            self._flex = home, home.flex_attention
            home.flex_attention = self._sparse  # type: ignore[attr-defined]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._flex:
            home, real = self._flex
            home.flex_attention = real

    def _sparse(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        """Recorded as dense, since how many blocks a mask keeps depends on values; as flash, it holds no scores."""
        return self._attend(query, key, value)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(
            args[0] if args else kwargs["query"], FakeTensor
        ):
            return self._attend(*args, **kwargs)
        if func in READ and isinstance(args[0], FakeTensor):
            return READ[func](args[0])
        if func in MOVES:
            return self._moved(*args, *MOVES[func], **kwargs)
        if func in MAKERS:
            return self._made(func, args, kwargs)
        return self._instead.get(func, func)(*args, **kwargs)

    def _rms_norm(
        self,
        input: torch.Tensor,  # noqa: A002  (the names are torch's)
        normalized_shape: list[int],
        weight: torch.Tensor | None = None,
        eps: float | None = None,
    ) -> torch.Tensor:
        """CUDA has one kernel, which copies what lies otherwise; the CPU has none, nor has CUDA for two dtypes."""
        if not isinstance(input, FakeTensor) or (weight is not None and weight.dtype != input.dtype):
            return torch.rms_norm(input, normalized_shape, weight, eps)
        whole = input.contiguous()
        lead = whole.dim() - len(normalized_shape)
        with self._mode:
            shape = (*whole.shape[:lead], *(1 for _ in normalized_shape))
            outs = torch.empty_like(whole), torch.empty(shape, dtype=torch.float32)  # and a number a row
        self._recorder.allocated(outs)
        self._recorder.ran(kernel_of(aten._fused_rms_norm.default, (whole, weight), {}, outs))
        return outs[0]

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor made from nothing lies on the host, unless a device is named."""
        named = kwargs.get("device")
        self._recorder.on_host = named is None or named == HOST
        try:
            made = func(*args, **kwargs)
        finally:
            there, self._recorder.on_host = self._recorder.on_host, False
        if not there:
            self._recorder.allocated((made,))  # what Python's numbers become is told to nobody else
        return made

    def _moved(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if on_host(tensor, self._recorder) or _is_table(tensor, self._recorder):
            return self._onto_card(tensor, *args, **kwargs)
        if isinstance(tensor, FakeTensor):
            return tensor.to(*args, **kwargs)
        if HOST in (*(arg for arg in args if isinstance(arg, str)), kwargs.get("device")):
            return self._table(tensor, *args, **kwargs)
        if is_outside(tensor, self._recorder) and torch._C._nn._parse_to(*args, **kwargs)[0] is not None:
            arrived = self._table(tensor, *args, **kwargs)
            self._recorder.allocated((arrived,))
            return arrived
        return tensor.to(*args, **kwargs)

    def _table(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A copy that keeps its values, and is on nobody's account yet."""
        with torch.utils._python_dispatch._disable_current_modes():
            return tensor.to(*args, **kwargs).clone()

    def _onto_card(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A picture or a table leaves the host: it is cast there, and arrives as a ghost that lies as it lay.

        What is cast comes row by row, and is copied once more where it is to lie otherwise (Copy.cu).
        """
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        if device is None:
            return tensor.to(*args, **kwargs)
        with self._mode:
            arrived = torch.empty_like(
                tensor, dtype=dtype or tensor.dtype, memory_format=layout or torch.preserve_format
            )
        self._recorder.allocated((arrived,))
        again = arrived.dtype != tensor.dtype and not arrived.is_contiguous()
        size = nbytes(arrived)
        self._recorder.ran(Plain(name="copy", flops=0, traffic=size, scratch=size if again else 0))
        return arrived

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002  (the signature is torch's)
        is_causal: bool = False,
        scale: float | None = None,  # noqa: ARG002
        enable_gqa: bool = False,  # noqa: ARG002
    ) -> torch.Tensor:
        *lead, heads, queries, head_size = query.shape
        width = value.shape[-1]
        # Fused kernels write (batch, queries, heads, width) and return a transposed view of it.
        with self._mode:
            flat = torch.empty((*lead, queries, heads, width), dtype=query.dtype)
        out = flat.transpose(-3, -2)
        self._recorder.allocated((flat,))
        self._recorder.ran(
            Attention(
                dtype=name_of(query.dtype), batch=prod(lead), heads=heads, queries=queries, keys=key.shape[-2],
                head_size=head_size, value_size=width, mask=_mask(attn_mask),
                mask_size=0 if attn_mask is None else attn_mask.numel(),
                mask_columns=0 if attn_mask is None else attn_mask.shape[-1],
                mask_aligned=attn_mask is None or not any(n % 8 for n in attn_mask.stride()[:-1]), causal=is_causal,
                apart="".join(name for name, t in zip("qkv", (query, key, value), strict=True) if _apart(t)),
                switchable=_library(sys._getframe(1)) != "transformers",
            )
        )  # fmt: skip
        return out


def _apart(tensor: torch.Tensor) -> bool:
    """Whether rows come before heads in memory; what is one head or one row lies both ways."""
    return 1 not in tensor.shape[-3:-1] and tensor.stride(-3) < tensor.stride(-2)


def _library(frame: FrameType | None) -> str:
    """Whose code asks: diffusers can choose the backend of its own attention, not that of transformers' modules."""
    while frame is not None:
        library = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if library in ("diffusers", "transformers"):
            return library
        frame = frame.f_back
    return ""


def _mask(mask: torch.Tensor | None) -> Literal["none", "bool", "float"]:
    if mask is None:
        return "none"
    return "bool" if mask.dtype == torch.bool else "float"


def kernel_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[torch.Tensor]) -> Kernel:
    """The kernel that CUDA would run for this operation."""
    if func is aten.convolution.default:
        return _conv(args, outs[0])
    traffic = sum(nbytes(t) for t in (*tensors(args), *tensors(kwargs), *outs))
    if func in PRODUCTS:
        (first, second), out = args[PRODUCTS[func] :][:2], outs[0]
        if first.dtype != second.dtype:  # kernels of ghosts do not look
            raise RuntimeError(f"a product of {name_of(first.dtype)} and {name_of(second.dtype)}, which CUDA refuses")
        shape = (prod(out.shape[:-2]), *out.shape[-2:], first.shape[-1])
        return Matmul(dtype=name_of(first.dtype), flops=2 * prod(shape), traffic=traffic, shape=shape)
    name, flops = func._schema.name.removeprefix("aten::"), sum(t.numel() for t in outs)
    if func in REDUCTIONS and len(args) > REDUCTIONS[func] and args[0].dim() and args[0].numel():
        return _reduction(name, args[0], args[REDUCTIONS[func]], flops, traffic)
    # CUDA copies what lies otherwise for these, when their output is there already; for layer norm it does so before.
    copied = name in COPYING and not args[0].is_contiguous() and outs[0].is_contiguous()
    scratch = nbytes(args[0]) if copied else FOURIER * nbytes(outs[0]) if name in TRANSFORMS else 0
    if func is aten.pow.Scalar:  # the number that is raised becomes a tensor
        scratch = outs[0].element_size()
    return Plain(name=name, flops=flops, traffic=traffic, scratch=scratch)


def _reduction(name: str, x: torch.Tensor, dims: Sequence[int] | None, flops: int, traffic: int) -> Reduction:
    over = {d % x.dim() for d in dims} if dims else set(range(x.dim()))
    values = prod(x.shape[d] for d in over)
    along, vector = layout(x.shape, x.stride(), over, int(x.storage_offset()))
    return Reduction(
        name=name, flops=flops, traffic=traffic, results=x.numel() // values, values=values, along=along, vector=vector,
        item=max(4, x.element_size()),
    )  # fmt: skip


def _follow(func: Any, args: Sequence[Any], outs: Sequence[torch.Tensor]) -> None:
    """Note which results in bfloat16 are channels-last by convolutions alone; older cards have no cuDNN for those."""
    for out in outs:
        if out.dtype != torch.bfloat16 or not _is_last(out):
            continue
        causes = [t for t in tensors(args) if t.dim() == out.dim() and _is_last(t)]
        if func is aten.convolution.default or (causes and all(map(is_handed_on, causes))):
            hand_on(out)


def _is_last(tensor: torch.Tensor) -> bool:
    return not tensor.is_contiguous() and channels_last(tensor.shape, tensor.stride())


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of the tensor's own elements."""
    return tensor.numel() * tensor.element_size()


def name_of(dtype: torch.dtype) -> str:
    """`float16` for `torch.float16`."""
    return str(dtype).removeprefix("torch.")


def _conv(args: Sequence[Any], out: torch.Tensor) -> Conv:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args
    input_last, weight_last = (channels_last(t.shape, t.stride()) for t in (x, weight))
    layout = metas.LAST[x.dim()] if input_last or weight_last else torch.contiguous_format
    return Conv(
        dtype=name_of(x.dtype), input=tuple(x.shape), weight=tuple(weight.shape), output=tuple(out.shape),
        stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation), groups=groups, transposed=transposed,
        input_last=input_last, weight_last=weight_last, copied=not x.is_contiguous(memory_format=layout),
        handed_on=is_handed_on(x), scattered=not input_last and not x.is_contiguous(),
    )  # fmt: skip


def _makes_ghost(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    size = args[0] if isinstance(args[0], (list, tuple, torch.Size)) else ()
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    if not all(isinstance(n, int) for n in size) or prod(size) < LARGE:
        return False
    return func in RANDOM or dtype.is_floating_point or prod(size) >= HUGE


def _counted(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A ghost indexed by a real boolean mask has a size: count the mask before the ghost sees it."""
    if func not in INDEXED or not isinstance(args[0], FakeTensor):
        return args
    indices: list[torch.Tensor | None] = []
    for index in args[1]:
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            indices += index.nonzero(as_tuple=True)
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])


def _zero(dtype: torch.dtype) -> bool | int | float:
    return False if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0


def is_outside(tensor: torch.Tensor, recorder: Recorder) -> bool:
    """Whether a small table lies on the host: neither ghosts nor buffers do, nor what was made on the card or moved."""
    return not isinstance(tensor, FakeTensor) and not recorder.knows(tensor.untyped_storage())


def on_host(tensor: torch.Tensor, recorder: Recorder) -> bool:
    """Whether a large tensor lies on the host: one that no operation made, as what comes from numpy, or one of those.

    Weights are ghosts.
    """
    return _is_real(tensor) and recorder.serial_of(tensor.untyped_storage()) < 0


def _is_table(tensor: torch.Tensor, recorder: Recorder) -> bool:
    """Whether a ghost is a plain attribute, which moves with no module: neither a weight nor what an operation made."""
    return isinstance(tensor, FakeTensor) and not recorder.knows(tensor.untyped_storage())


def _is_real(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and tensor.numel() >= LARGE and tensor.is_floating_point()


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is on nobody's account, and in the precision pipelines ask of it next, so that none is made."""
    with torch.utils._python_dispatch._disable_current_modes():
        zero = torch.zeros((), dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
        return zero.expand(tensor.shape)


READ: dict[Any, Callable[[torch.Tensor], Any]] = {
    torch.Tensor.numpy: lambda ghost: numpy.zeros(tuple(ghost.shape), dtype=name_of(ghost.dtype)),
    torch.Tensor.bincount: lambda ghost: torch.tensor([ghost.numel()]),  # all zeros: a router sends all to one expert
    torch.Tensor.cpu: _on_host,
}
"""What leaves the ghost world, and what is read there."""
