"""Probing over a fake NVML: a module with the same functions, over cards given as data."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import TypeVar

import pynvml
import pytest

from planner.cards import card
from planner.device import Device
from planner.errors import BadRequest, UnknownDevice
from planner.probe import device_of_size, held, probe, probe_one

GIB = 2**30
T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Fake:
    """One card or slice; a field that is None is what this card does not support."""

    name: str
    uuid: str
    total: int | None
    used: int = 0
    capability: tuple[int, int] = (8, 9)
    link: tuple[int, int] | None = (4, 16)
    mig: bool | None = None
    slices: tuple[Fake | None, ...] = ()
    multiprocessors: int = 0
    unprivileged: bool = False
    processes: tuple[tuple[int, int | None], ...] | None = ()


@dataclass
class FakeNvml(ModuleType):
    """What the probe uses of pynvml, answered from `cards`; the errors are pynvml's own."""

    cards: tuple[Fake, ...] = ()
    driver: str | None = "580.65.06"
    sessions: int = field(default=0, init=False)

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_NotFound = pynvml.NVMLError_NotFound
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVML_DEVICE_MIG_DISABLE = pynvml.NVML_DEVICE_MIG_DISABLE

    def nvmlInit(self) -> None:
        if self.driver is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return supported(self.driver)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Fake:
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: Fake) -> str:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: Fake) -> str:
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Fake) -> SimpleNamespace:
        if handle.unprivileged:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        total = supported(handle.total)
        return SimpleNamespace(total=total, free=total - handle.used, used=handle.used)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Fake) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetMaxPcieLinkGeneration(self, device: Fake) -> int:
        return supported(device.link)[0]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Fake) -> int:
        return supported(handle.link)[1]

    def nvmlDeviceGetMigMode(self, device: Fake) -> list[int]:
        return [int(supported(device.mig)), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Fake) -> int:
        return len(device.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Fake, index: int) -> Fake:
        if (found := device.slices[index]) is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Fake) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in supported(handle.processes)]

    def nvmlDeviceGetAttributes(self, device: Fake) -> SimpleNamespace:
        return SimpleNamespace(multiprocessorCount=device.multiprocessors)


def supported(value: T | None) -> T:
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value


ADA = Fake(name="NVIDIA GeForce RTX 4090", uuid="GPU-4090aaaa-0000", total=24564 * 2**20, used=3 * GIB)
AMPERE = Fake(name="NVIDIA GeForce RTX 3070", uuid="GPU-3070bbbb-0000", total=8 * GIB, capability=(8, 6))
SLICES = (
    Fake(name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", uuid="MIG-3333", total=20 * GIB, used=GIB, multiprocessors=42),
    None,
    Fake(name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", uuid="MIG-1111", total=5 * GIB, multiprocessors=14),
)
A100 = Fake(
    name="NVIDIA A100-SXM4-40GB", uuid="GPU-a100cccc", total=40 * GIB, capability=(8, 0), mig=True, slices=SLICES
)


@pytest.fixture(autouse=True)
def _every_card_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def names(*cards: Fake) -> list[str]:
    return [device.uuid[:8] for device in probe(nvml=FakeNvml(cards))]


def test_the_fake_answers_as_pynvml_would_be_asked() -> None:
    for name, function in inspect.getmembers(FakeNvml, inspect.isfunction):
        if name.startswith("nvml"):
            ours = list(inspect.signature(function).parameters)[1:]
            theirs = inspect.signature(getattr(pynvml, name)).parameters.values()
            assert len(ours) == sum(p.default is inspect.Parameter.empty for p in theirs), name


def test_one_card_has_the_bytes_of_nvml_and_the_rates_of_its_profile() -> None:
    nvml = FakeNvml((ADA,))
    (device,) = probe(nvml=nvml)
    profile = card("rtx-4090")
    assert device == replace(
        profile,
        total=24564 * 2**20,
        free=24564 * 2**20 - 3 * GIB,
        uuid=ADA.uuid,
        driver="580.65.06",
        source="NVML; rates of card profile rtx-4090",
    )
    assert nvml.sessions == 0


def test_two_cards_in_order() -> None:
    assert names(ADA, AMPERE) == ["GPU-4090", "GPU-3070"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", ["GPU-3070"]),
        ("1,0", ["GPU-3070", "GPU-4090"]),
        (" 1 , 0 ", ["GPU-3070", "GPU-4090"]),
        ("GPU-3070bbbb-0000", ["GPU-3070"]),
        ("GPU-30,GPU-40", ["GPU-3070", "GPU-4090"]),
        ("0,7,1", ["GPU-4090"]),
        ("0,-1,1", ["GPU-4090"]),
        ("0,0", []),
        ("-1", []),
        ("", []),
        ("3070bbbb", []),
    ],
)
def test_visible_devices_as_cuda_reads_them(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert names(ADA, AMPERE) == expected


def test_one_of_several_by_place_or_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml((ADA, AMPERE))
    assert probe_one(1, nvml=nvml).uuid == AMPERE.uuid
    assert probe_one("GPU-3070bbbb-0000", nvml=nvml) == probe_one("3070bbbb-0000", nvml=nvml) == probe_one(1, nvml=nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert probe_one(nvml=nvml).uuid == AMPERE.uuid


@pytest.mark.parametrize("which", [2, -1, "GPU-unheard-of"])
def test_a_card_that_is_not_there(which: int | str) -> None:
    with pytest.raises(UnknownDevice, match=rf"no card {which} .*0 \(GPU-4090aaaa-0000\), 1 \(GPU-3070bbbb-0000\)"):
        probe_one(which, nvml=FakeNvml((ADA, AMPERE)))


def test_no_card_visible() -> None:
    with pytest.raises(UnknownDevice, match="among those visible, none; name a card with --gpu"):
        probe_one(nvml=FakeNvml(()))


def test_mig_slices_are_devices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small, other = probe(nvml=FakeNvml((A100, ADA)))
    whole = card("a100-sxm4-40gb")
    assert (large.mig, small.mig, other.mig) == (True, True, False)
    assert (large.name, large.uuid) == ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "MIG-3333")
    assert (large.total, large.free) == (20 * GIB, 19 * GIB)
    assert (large.multiprocessors, small.multiprocessors) == (42, 14)
    assert large.half_rate == pytest.approx(whole.half_rate * 42 / 108)
    assert (large.bandwidth, large.l2) == (whole.bandwidth / 2, whole.l2 // 2)
    assert (small.bandwidth, small.l2) == (whole.bandwidth / 8, whole.l2 // 8)
    assert large.compute_capability == (8, 0)
    assert large.source == "NVML; rates of card profile a100-sxm4-40gb"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("MIG-1111", ["MIG-1111"]),
        ("GPU-a100", ["MIG-3333", "MIG-1111"]),
        ("0", ["MIG-3333", "MIG-1111"]),
        ("1,MIG-3333", ["GPU-4090", "MIG-3333"]),
    ],
)
def test_mig_slices_can_be_chosen(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert names(A100, ADA) == expected


def test_mig_in_a_container_where_the_whole_card_is_secret() -> None:
    secret = replace(A100, unprivileged=True)
    assert probe(nvml=FakeNvml((secret,))) == probe(nvml=FakeNvml((A100,)))


def test_a_card_that_could_slice_and_does_not() -> None:
    (device,) = probe(nvml=FakeNvml((replace(A100, mig=False),)))
    assert (device.mig, device.total) == (False, 40 * GIB)


def test_no_pcie_link_keeps_the_profile_rates() -> None:
    device = probe_one(nvml=FakeNvml((replace(ADA, link=None),)))
    assert device.pcie == (0, 0)
    assert device.pinned_rate == card("rtx-4090").pinned_rate


def test_a_narrow_slot_slows_the_copies() -> None:
    profile = card("rtx-4090")
    device = probe_one(nvml=FakeNvml((replace(ADA, link=(3, 4)),)))
    assert device.pcie == (3, 4)
    assert device.pinned_rate == profile.pinned_rate / 8
    assert device.pageable_rate == min(profile.pageable_rate, device.pinned_rate)


def test_an_unknown_card_says_whose_rates_stand_in() -> None:
    unheard = Fake(name="NVIDIA Quadro XYZ 9000", uuid="GPU-9", total=8 * GIB, capability=(7, 5))
    device = probe_one(nvml=FakeNvml((unheard,)))
    assert (device.name, device.total, device.compute_capability) == (unheard.name, 8 * GIB, (7, 5))
    assert not device.native_bf16
    assert device.source.startswith("NVML; rates of card profile ")
    assert device.source.endswith(", the nearest known card")


def test_no_driver_says_what_to_do_instead() -> None:
    with pytest.raises(UnknownDevice, match=r"No NVIDIA driver answers .*--gpu rtx-3070 .* --vram 8GiB\.$"):
        probe(nvml=FakeNvml(driver=None))


def test_a_card_without_memory_figures_says_what_to_do_instead() -> None:
    nvml = FakeNvml((replace(ADA, total=None),))
    with pytest.raises(UnknownDevice, match=r"does not describe its cards \(Not Supported\); name a card"):
        probe(nvml=nvml)
    assert nvml.sessions == 0


@pytest.mark.parametrize(("total", "capability"), [(8 * GIB, (8, 6)), (24 * 10**9, (8, 9)), (11 * GIB, (7, 5))])
def test_a_card_of_some_size(total: int, capability: tuple[int, int]) -> None:
    device: Device = device_of_size(total, capability)
    assert (device.total, device.free, device.compute_capability) == (total, total, capability)
    assert device.half_rate > 0
    assert device.bandwidth > 0
    assert device.native_bf16 is (capability >= (8, 0))
    assert "memory as given; rates of card profile " in device.source
    assert "the nearest known card" in device.source


def test_a_card_of_no_size() -> None:
    with pytest.raises(BadRequest, match="A card of 0 B holds nothing"):
        device_of_size(0)
    with pytest.raises(BadRequest, match="write 8GB if gigabytes were meant"):
        device_of_size(8)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (((1, 10**9), (os.getpid(), 2 * 10**9)), 2 * 10**9),
        (((1, 10**9),), None),  # a container: other process numbers than the driver's
        (((os.getpid(), None),), None),  # Windows
        (None, None),
    ],
)
def test_what_this_process_holds(processes: tuple[tuple[int, int | None], ...] | None, expected: int | None) -> None:
    nvml = FakeNvml(cards=(Fake(name="NVIDIA GeForce RTX 4090", uuid="GPU-1", total=24 * GIB, processes=processes),))
    assert held("1", nvml=nvml) == expected
    assert held("2", nvml=nvml) is None
    assert nvml.sessions == 0
