"""How much host memory and disk a plan may count on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

_INTERFACES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files of limit and usage, and the count of idle file cache in `memory.stat`, in control groups of version 2 and 1.
Source: the kernel's admin-guide, cgroup-v2 and cgroup-v1/memory."""


def available_host_ram(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes of host memory free for this process: the machine's, or fewer where a control group limits it.

    `cgroups` is where control groups are mounted, `membership` the file that names those of this process.
    """
    import psutil

    rooms = [_room(group) for group in _groups(cgroups, membership)]
    return max(0, min([int(psutil.virtual_memory().available), *(room for room in rooms if room is not None)]))


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is or, as long as there is none, would be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def cores() -> int:
    """Cores this process may compute on, as torch counts its threads: those with two threads once."""
    import psutil

    process: object = psutil.Process()
    allowed = len(affinity()) if (affinity := getattr(process, "cpu_affinity", None)) else psutil.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _groups(cgroups: Path, membership: Path) -> Iterator[Path]:
    """Folders of this process's memory groups and of the groups around them, whose limits hold as well."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounts = {"": (cgroups, cgroups / "unified"), "memory": (cgroups / "memory",)}
        for name in controllers.split(","):
            for mount in mounts.get(name, ()):
                inner = Path(path.lstrip("/"))
                yield from (mount / part for part in (inner, *inner.parents))


def _room(group: Path) -> int | None:
    """Bytes below the group's limit; None where it has none.

    File cache that lies idle counts as free, since the kernel drops it before it refuses memory: checkpoints read
    before would otherwise fill a container.
    """
    for limit, usage, idle in _INTERFACES:
        try:
            bound = (group / limit).read_text().strip()
            used = int((group / usage).read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        return None if bound == "max" else int(bound) - used + int(counts.get(idle, 0))
    return None
