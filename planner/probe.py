"""The cards of this machine as values, read through NVML.  No CUDA context is made.

NVML knows bytes, links and names; how fast a card computes and copies comes from its profile (`planner.cards`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

from planner.calibration import calibrated
from planner.cards import card, nearest, pinned_rate
from planner.device import Device, published_context
from planner.errors import BadRequest, UnknownDevice
from planner.units import FEW, FORMS, MEANT, format_bytes

BF16_SINCE = (8, 0)
"""First compute capability with bf16 tensor cores (CUDA C++ Programming Guide, feature support by capability)."""

_INSTEAD = "name a card with --gpu rtx-3070 or its memory with --vram 8GiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """What CUDA numbers as one device: a card, or a slice of a card in MIG mode."""

    index: int
    """Of the card, in NVML's order."""
    uuid: str
    card_uuid: str
    card: object
    handle: object
    """NVML's handle of the slice, or again of the card."""

    @property
    def mig(self) -> bool:
        return self.handle is not self.card


def probe(*, nvml: ModuleType | None = None) -> tuple[Device, ...]:
    """The cards CUDA_VISIBLE_DEVICES leaves, in its order or else NVML's (by PCI bus); MIG slices one by one.

    Bytes are NVML's, and whatever other processes and the driver hold is not free.  `nvml` stands in for pynvml.
    Raises UnknownDevice where no driver answers.  On a machine with cards of several kinds, CUDA numbers the fastest
    first unless CUDA_DEVICE_ORDER=PCI_BUS_ID: find the card behind a torch device with `probe_one` by its uuid.
    """
    with _session(nvml) as session:
        return tuple(_device(session, unit) for unit in _visible(session))


def probe_one(which: int | str = 0, *, nvml: ModuleType | None = None) -> Device:
    """One of the cards `probe` lists: by place, or by uuid, which torch writes without `GPU-`.

    Raises UnknownDevice if there is none.
    """
    with _session(nvml) as session:
        units = _visible(session)
        if isinstance(which, int):
            named = units[which : which + 1] if which >= 0 else []
        else:
            named = [unit for unit in units if which in (unit.uuid, unit.uuid.partition("-")[2])]
        if not named:
            seen = ", ".join(f"{place} ({unit.uuid})" for place, unit in enumerate(units)) or "none"
            raise UnknownDevice(f"There is no card {which} among those visible, {seen}; {_INSTEAD}.")
        return _device(session, named[0])


def held(which: str, *, nvml: ModuleType | None = None) -> int | None:
    """Bytes this process holds of the card with that uuid, its CUDA context included.

    None where the driver does not tell: on Windows, and in containers with process numbers of their own.
    """
    with _session(nvml) as session:
        unit = next((u for u in _visible(session) if which in (u.uuid, u.uuid.partition("-")[2])), None)
        if unit is None:
            return None
        try:
            running = session.nvmlDeviceGetComputeRunningProcesses(unit.handle)
        except (session.NVMLError_NotSupported, session.NVMLError_NoPermission):
            return None
        return next((process.usedGpuMemory for process in running if process.pid == os.getpid()), None)


def device_of_size(total: int, compute_capability: tuple[int, int] = (8, 6)) -> Device:
    """A card of `total` bytes of which nothing else is known, with the rates of the nearest known card."""
    if total <= published_context(compute_capability):
        meant = MEANT.format(total) if 0 < total < FEW else f"write {FORMS}"
        raise BadRequest(f"A card of {format_bytes(total)} holds nothing beside the CUDA context; {meant}.")
    known, _ = nearest("", compute_capability, total)
    return replace(
        known,
        name=f"card of {format_bytes(total)}",
        total=total,
        free=total,
        compute_capability=compute_capability,
        context=published_context(compute_capability),
        native_bf16=compute_capability >= BF16_SINCE,
        source=f"memory as given; rates of {known.source}, the nearest known card",
    )


@contextmanager
def _session(nvml: ModuleType | None) -> Iterator[ModuleType]:
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise UnknownDevice(f"No NVIDIA driver answers here ({error}); {_INSTEAD}.") from error
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise UnknownDevice(f"The NVIDIA driver does not describe its cards ({error}); {_INSTEAD}.") from error
    finally:
        nvml.nvmlShutdown()


def _visible(nvml: ModuleType) -> list[_Unit]:
    """The units CUDA would number, following CUDA_VISIBLE_DEVICES.

    As CUDA reads it, the list ends at the first entry that names nothing, and an entry given twice hides everything.
    """
    units = list(_units(nvml))
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return units
    chosen: list[_Unit] = []
    for name in names.split(","):
        named = [unit for unit in units if _answers(unit, name.strip())]
        if not named:
            break
        if named[0] in chosen:
            return []
        chosen += named
    return chosen


def _answers(unit: _Unit, name: str) -> bool:
    if name.isdecimal():
        return unit.index == int(name)
    return name.startswith(("GPU-", "MIG-")) and (unit.uuid.startswith(name) or unit.card_uuid.startswith(name))


def _units(nvml: ModuleType) -> Iterator[_Unit]:
    for index in range(nvml.nvmlDeviceGetCount()):
        whole = nvml.nvmlDeviceGetHandleByIndex(index)
        card_uuid = nvml.nvmlDeviceGetUUID(whole)
        for handle in _handles(nvml, whole):
            uuid = nvml.nvmlDeviceGetUUID(handle)
            yield _Unit(index=index, uuid=uuid, card_uuid=card_uuid, card=whole, handle=handle)


def _handles(nvml: ModuleType, whole: object) -> Iterator[object]:
    """The card itself, or its slices where it is in MIG mode and cannot be used as a whole."""
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(whole)
    except nvml.NVMLError_NotSupported:
        mode = nvml.NVML_DEVICE_MIG_DISABLE
    if mode == nvml.NVML_DEVICE_MIG_DISABLE:
        yield whole
        return
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        if (handle := _slice(nvml, whole, place)) is not None:
            yield handle


def _slice(nvml: ModuleType, whole: object, place: int) -> object | None:
    try:
        handle: object = nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, place)
    except nvml.NVMLError_NotFound:
        return None
    return handle


def _device(nvml: ModuleType, unit: _Unit) -> Device:
    # `free` and not `used`: whether `used` counts what the driver reserves depends on the version of the record.
    memory = nvml.nvmlDeviceGetMemoryInfo(unit.handle)
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(unit.card))
    whole = _whole(nvml, unit) if unit.mig else memory.total
    known, exact = nearest(nvml.nvmlDeviceGetName(unit.card), capability, whole)
    link = _link(nvml, unit.card)
    pinned = pinned_rate(*link) if all(link) else known.pinned_rate
    device = replace(
        known,
        name=nvml.nvmlDeviceGetName(unit.handle),
        total=memory.total,
        free=memory.free,
        compute_capability=capability,
        context=published_context(capability),
        native_bf16=capability >= BF16_SINCE,
        pinned_rate=pinned,
        pageable_rate=min(known.pageable_rate, pinned),
        uuid=unit.uuid,
        driver=nvml.nvmlSystemGetDriverVersion(),
        pcie=link,
        mig=unit.mig,
        source=f"NVML; rates of {known.source}" + ("" if exact else ", the nearest known card"),
    )
    return _sliced(nvml, unit, device, whole) if unit.mig else calibrated(device)


def _whole(nvml: ModuleType, unit: _Unit) -> int:
    """Bytes of the card a slice is of; for a card in MIG mode NVML tells them to privileged processes only.

    Source: NVIDIA/nvidia-container-toolkit#842.
    """
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(unit.card).total)
    except (nvml.NVMLError_NoPermission, nvml.NVMLError_NotSupported):
        return card(nvml.nvmlDeviceGetName(unit.card)).total


def _sliced(nvml: ModuleType, unit: _Unit, device: Device, whole: int) -> Device:
    """The slice's part of the card's rates: multiprocessors share compute, memory slices share bandwidth and cache.

    Source: NVIDIA Multi-Instance GPU User Guide, section Concepts.
    """
    own = nvml.nvmlDeviceGetAttributes(unit.handle).multiprocessorCount
    compute = own / device.multiprocessors if device.multiprocessors else device.total / whole
    return replace(
        device,
        multiprocessors=own,
        half_rate=device.half_rate * compute,
        single_rate=device.single_rate * compute,
        bandwidth=device.bandwidth * device.total / whole,
        l2=device.l2 * device.total // whole,
    )


def _link(nvml: ModuleType, whole: object) -> tuple[int, int]:
    """Best generation and lanes of card and slot; the current ones drop while the card idles."""
    try:
        return nvml.nvmlDeviceGetMaxPcieLinkGeneration(whole), nvml.nvmlDeviceGetMaxPcieLinkWidth(whole)
    except nvml.NVMLError_NotSupported:
        return 0, 0
