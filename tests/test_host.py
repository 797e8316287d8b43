"""Host memory under control groups, from folders written for the test."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from planner.host import available_host_ram, free_disk

MB = 10**6


def group(folder: Path, version: int, limit: str, usage: int, idle: int = 0) -> None:
    """Write the files the kernel shows for one memory group."""
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}
    bound, used, cache = names[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{bound}").write_text(f"{limit}\n")
    (folder / f"memory.{used}").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon {usage - idle}\n{cache} {idle}\n")


def ram(tmp_path: Path, *lines: str) -> int:
    (tmp_path / "membership").write_text("".join(f"{line}\n" for line in lines))
    return available_host_ram(tmp_path, tmp_path / "membership")


def about_all(available: int) -> bool:
    return available == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_version_2_in_a_container(tmp_path: Path) -> None:
    group(tmp_path, 2, str(50 * MB), 20 * MB)
    assert ram(tmp_path, "0::/") == 30 * MB


def test_version_1_in_a_container(tmp_path: Path) -> None:
    group(tmp_path / "memory", 1, str(50 * MB), 20 * MB)
    assert ram(tmp_path, "9:name=systemd:/", "4:cpu,memory:/docker/abc", "0::/") == 30 * MB


def test_idle_file_cache_counts_as_free(tmp_path: Path) -> None:
    group(tmp_path, 2, str(50 * MB), 45 * MB, idle=40 * MB)
    group(tmp_path / "memory", 1, str(60 * MB), 45 * MB, idle=40 * MB)
    assert ram(tmp_path, "0::/") == 45 * MB
    assert ram(tmp_path, "4:memory:/") == 55 * MB


@pytest.mark.parametrize(("inner", "outer", "expected"), [("max", "50000000", 30), ("40000000", "max", 35)])
def test_the_tightest_group_around_the_process_holds(tmp_path: Path, inner: str, outer: str, expected: int) -> None:
    group(tmp_path / "user.slice" / "app", 2, inner, 5 * MB)
    group(tmp_path / "user.slice", 2, outer, 20 * MB)
    assert ram(tmp_path, "0::/user.slice/app") == expected * MB


def test_groups_beside_the_process_do_not_count(tmp_path: Path) -> None:
    group(tmp_path / "other", 2, str(MB), 0)
    assert about_all(ram(tmp_path, "0::/mine"))


def test_no_limit(tmp_path: Path) -> None:
    group(tmp_path / "memory", 1, "9223372036854771712", 20 * MB)
    group(tmp_path / "unified", 2, "max", 20 * MB)
    assert about_all(ram(tmp_path, "4:memory:/", "0::/"))


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert about_all(available_host_ram(tmp_path, tmp_path / "absent"))


def test_over_the_limit_is_none_left(tmp_path: Path) -> None:
    group(tmp_path, 2, str(10 * MB), 20 * MB)
    assert ram(tmp_path, "0::/") == 0


def test_this_machine() -> None:
    assert 0 < available_host_ram() <= psutil.virtual_memory().total


def test_disk_is_free_where_a_folder_will_be(tmp_path: Path) -> None:
    free = free_disk(tmp_path / "not" / "there")
    assert 0 < free <= psutil.disk_usage(str(tmp_path)).total
    assert not (tmp_path / "not").exists()
