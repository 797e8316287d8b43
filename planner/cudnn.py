"""cuDNN's own answer: how much workspace its engines want for a convolution, asked without a GPU.

Since 9.8 cuDNN plans for a card it is only told about ("deviceless ahead-of-time compilation").  The library that torch
brings along is the one that will run, so its answer holds for the versions on this machine; where there is none, the
rules of `workspace` stand in.  Numbers are those of cudnn_graph.h.  A question takes 0.2 ms, the first one 0.2 s.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

DEVICELESS = 90_800
"""First version that plans for a described card."""
NAMES = {"linux": "libcudnn.so.9", "win32": "cudnn64_9.dll"}
PLACES = (("nvidia", "cudnn/lib"), ("nvidia", "cudnn/bin"), ("torch", "lib"))
"""Packages, which are found but not imported, and the folders in them where wheels keep it."""

# cudnnBackendDescriptorType_t
CONVOLUTION, ENGINE, CONFIG, HEURISTICS, PLAN, FORWARD, BACKWARD_DATA, GRAPH, TENSOR, CARD = (
    *(1, 2, 3, 4, 5, 10, 12, 15, 17, 38),
)  # fmt: skip
# cudnnBackendAttributeType_t
DATA_TYPE, BOOLEAN, INTEGER, FLOAT, MODE, HEURISTIC, NOTE, DESCRIPTOR, TEXT = 1, 2, 3, 4, 7, 8, 11, 15, 24
IN_C: dict[int, Any] = {
    DATA_TYPE: ctypes.c_int, BOOLEAN: ctypes.c_bool, INTEGER: ctypes.c_int64, FLOAT: ctypes.c_float,
    MODE: ctypes.c_int, HEURISTIC: ctypes.c_int, NOTE: ctypes.c_int, DESCRIPTOR: ctypes.c_void_p, TEXT: ctypes.c_char,
}  # fmt: skip
DATA = {"float32": 0, "float16": 2, "bfloat16": 9}
CROSS_CORRELATION = 1
LISTS = (0, 2)
"""CUDNN_HEUR_MODE_INSTANT, then _FALLBACK: what torch asks (Conv_v8.cpp, benchmark off)."""
DOWN_CONVERTS = 1
"""Engines with this numerical note are left out by torch."""
ALIGNMENT = 32
"""Bytes; the allocator's blocks are aligned better, and torch looks no further."""
MOST = 64
"""Engine configurations asked for at once; 38 were seen."""

PER_MULTIPROCESSOR = {
    (7, 5): (1024, 16, 65536), (8, 0): (2048, 32, 166912), (8, 6): (1536, 16, 101376), (8, 9): (1536, 24, 101376),
    (9, 0): (2048, 32, 232448), (10, 0): (2048, 32, 232448), (12, 0): (1536, 24, 101376),
}  # fmt: skip
"""Threads and blocks resident, bytes of shared memory a block may opt into (CUDA C++ Programming Guide)."""


class Refused(Exception):
    """cuDNN answered with another status than success."""


@dataclass(frozen=True, slots=True)
class Question:
    """A convolution as torch puts it to cuDNN: logical shapes, two or three dimensions of space."""

    dtype: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    last: bool
    """Channels-last in memory."""


@dataclass(frozen=True, slots=True)
class Card:
    """What cuDNN is told of a card."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    l2: int
    total: int

    def described(self) -> bytes:
        """JSON with the names of cudaDeviceProp; clocks, which no profile has, are an RTX 3070's."""
        cc = self.compute_capability
        threads, blocks, shared = PER_MULTIPROCESSOR[max((k for k in PER_MULTIPROCESSOR if k <= cc), default=(7, 5))]
        facts = {
            "maxGridSize": [2**31 - 1, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
            "multiProcessorCount": self.multiprocessors, "warpSize": 32, "maxCtasPerSM": blocks,
            "maxThreadsPerBlock": 1024, "maxThreadsPerSM": threads, "pciDeviceId": 0, "isTccDriver": 0,
            "supportCoopLaunch": 1, "smClockRateKHz": 1_725_000, "memClockRateKHz": 7_001_000, "l2CacheSize": self.l2,
            "deviceVer": cc[0] * 100 + cc[1] * 10, "driverVer": 13000, "maxSharedMemoryPerBlock": 49152,
            "maxSharedMemoryPerBlockOptin": shared, "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536,
            "totalGlobalMem": self.total, "cudaDeviceId": 0, "deviceName": self.name,
        }  # fmt: skip
        return json.dumps(facts).encode()


@cache
def library() -> ctypes.CDLL | None:
    """The cuDNN on this machine; None where there is none, or none that plans for described cards."""
    for package, folder in PLACES if sys.platform in NAMES else ():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            file = Path(place, folder, NAMES[sys.platform])
            if file.exists():
                loaded = ctypes.CDLL(str(file))
                return loaded if loaded.cudnnGetVersion() >= DEVICELESS else None
    return None


def workspaces(question: Question, card: Card, *, every: bool = False) -> tuple[int, ...]:
    """Bytes for the engine torch tries first, or for all in torch's order; none where cuDNN is missing or refuses."""
    lib = library()
    if lib is None:
        return ()
    known = book(card)
    if (question, every) not in known:
        known[question, every] = _answer(lib, question, card, every)
    return known[question, every]


@lru_cache(maxsize=256)
def book(card: Card) -> dict[tuple[Question, bool], tuple[int, ...]]:  # noqa: ARG001 (one for each card)
    """The answers for a card so far, to questions for the first engine or for every one."""
    return {}


def _answer(lib: ctypes.CDLL, question: Question, card: Card, every: bool) -> tuple[int, ...]:
    with ExitStack() as stack:
        desk = Desk(lib, stack)
        try:
            graph, where = _graph(desk, question), _card(lib, card)
            if not every and (first := list(_planned(desk, graph, where, LISTS[0], 1))):
                return tuple(first)
            found = [size for mode in LISTS for size in _planned(desk, graph, where, mode, MOST)]
        except Refused:
            return ()
    return tuple(found) if every else tuple(found[:1])


class Desk:
    """Makes descriptors, and clears them away when `stack` closes."""

    def __init__(self, lib: ctypes.CDLL, stack: ExitStack) -> None:
        self._lib, self._stack = lib, stack

    def new(self, kind: int) -> ctypes.c_void_p:
        """A blank descriptor."""
        made = ctypes.c_void_p()
        _check(self._lib.cudnnBackendCreateDescriptor(kind, ctypes.byref(made)))
        self._stack.callback(self._lib.cudnnBackendDestroyDescriptor, made)
        return made

    def make(self, kind: int, *attributes: tuple[int, int, Any]) -> ctypes.c_void_p:
        """A finished descriptor: name, type and value of each attribute.  Raises Refused."""
        made = self.new(kind)
        for name, of, value in attributes:
            values = value if isinstance(value, (tuple, bytes)) else (value,)
            array = (IN_C[of] * len(values))(*values)
            _check(self._lib.cudnnBackendSetAttribute(made, name, of, ctypes.c_int64(len(values)), array))
        _check(self._lib.cudnnBackendFinalize(made))
        return made

    def read(self, descriptor: ctypes.c_void_p, name: int, of: int, array: Any) -> int:
        """Fill `array`; how many there were.  Raises Refused."""
        count = ctypes.c_int64()
        size = ctypes.c_int64(len(array))
        _check(self._lib.cudnnBackendGetAttribute(descriptor, name, of, size, ctypes.byref(count), array))
        return min(count.value, len(array))


def _check(status: int) -> None:
    if status:
        raise Refused(status)


@lru_cache(maxsize=16)
def _card(lib: ctypes.CDLL, card: Card) -> ctypes.c_void_p:
    """Kept as long as the process: describing a card costs more than asking about it."""
    return Desk(lib, ExitStack()).make(CARD, (2702, TEXT, card.described()))


def _graph(desk: Desk, q: Question) -> ctypes.c_void_p:
    dims = len(q.stride)
    how = desk.make(
        CONVOLUTION, (100, DATA_TYPE, DATA["float32"]), (101, MODE, CROSS_CORRELATION), (102, INTEGER, q.dilation),
        (103, INTEGER, q.stride), (104, INTEGER, q.padding), (105, INTEGER, q.padding), (106, INTEGER, dims),
    )  # fmt: skip
    x, w, y = (_tensor(desk, q, shape, name) for shape, name in ((q.input, "x"), (q.weight, "w"), (q.output, "y")))
    if q.transposed:
        last = (709, DESCRIPTOR, w), (710, DESCRIPTOR, y), (711, DESCRIPTOR, x)
        operation = desk.make(BACKWARD_DATA, (706, FLOAT, 1.0), (707, FLOAT, 0.0), (708, DESCRIPTOR, how), *last)
    else:
        last = (703, DESCRIPTOR, w), (704, DESCRIPTOR, x), (705, DESCRIPTOR, y)
        operation = desk.make(FORWARD, (700, FLOAT, 1.0), (701, FLOAT, 0.0), (702, DESCRIPTOR, how), *last)
    return desk.make(GRAPH, (801, DESCRIPTOR, operation))


def _tensor(desk: Desk, q: Question, shape: tuple[int, ...], name: str) -> ctypes.c_void_p:
    return desk.make(
        TENSOR, (901, DATA_TYPE, DATA[q.dtype]), (902, INTEGER, shape), (903, INTEGER, _strides(shape, q.last)),
        (906, INTEGER, ord(name)), (900, INTEGER, ALIGNMENT), (907, BOOLEAN, False),
    )  # fmt: skip


def _strides(shape: Sequence[int], last: bool) -> tuple[int, ...]:
    order = (1, *range(len(shape) - 1, 1, -1), 0) if last else range(len(shape) - 1, -1, -1)
    strides, step = [0] * len(shape), 1
    for d in order:
        strides[d] = step
        step *= shape[d]
    return tuple(strides)


def _planned(desk: Desk, graph: ctypes.c_void_p, card: ctypes.c_void_p, mode: int, most: int) -> Iterator[int]:
    """Workspaces of a list's configurations, in its order, but for those that torch leaves out or cannot build."""
    chooser = desk.make(HEURISTICS, (201, DESCRIPTOR, graph), (200, HEURISTIC, mode), (204, DESCRIPTOR, card))
    configs = (ctypes.c_void_p * most)(*(desk.new(CONFIG).value for _ in range(most)))
    for index in range(desk.read(chooser, 202, DESCRIPTOR, configs)):
        config = ctypes.c_void_p(configs[index])
        size = (ctypes.c_int64 * 1)()
        try:
            if not _down_converts(desk, config):
                plan = desk.make(PLAN, (401, DESCRIPTOR, config), (407, DESCRIPTOR, card))
                desk.read(plan, 402, INTEGER, size)
                yield size[0]
        except Refused:
            continue


def _down_converts(desk: Desk, config: ctypes.c_void_p) -> bool:
    engine, notes = (ctypes.c_void_p * 1)(desk.new(ENGINE).value), (ctypes.c_int * 16)()
    desk.read(config, 300, DESCRIPTOR, engine)
    return DOWN_CONVERTS in notes[: desk.read(ctypes.c_void_p(engine[0]), 1303, NOTE, notes)]
