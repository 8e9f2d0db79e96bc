"""Host memory of this process: how much it uses, how much it may use and lock, and how it returns freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import resource
from pathlib import Path

__all__ = ["ProcessMemory", "available_memory", "give_memory_back", "lockable_bytes", "process_memory"]

_CAP_IPC_LOCK = 14  # of <linux/capability.h>


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """Resident memory of this process in bytes; None where the system does not say.

    Attributes:
        anonymous: memory that the system could free by swapping only.
        file_backed: pages of mapped files, which the system drops when it needs memory, and reads again.
        cgroup_peak: most memory that the control group of the process has used, page cache included.
    """

    anonymous: int | None
    file_backed: int | None
    cgroup_peak: int | None


def process_memory() -> ProcessMemory:
    """The memory that this process uses now."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile"):
                found[name] = int(value.split()[0]) * 1024
    return ProcessMemory(anonymous=found.get("RssAnon"), file_backed=found.get("RssFile"), cgroup_peak=_cgroup_peak())


def give_memory_back() -> None:
    """Return freed memory to the system, small blocks of the C library's allocator included."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int | None:
    """Bytes that this process can allocate without swapping or reaching a limit of its control groups.

    Page cache that can be dropped counts as free. None where the system does not say.
    """
    found: list[int] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for version, directory in _cgroups():
        limit, used, cache, _ = _CGROUP_FILES[version]
        for level in (directory, *directory.parents):
            with contextlib.suppress(OSError, ValueError):  # a limit of "max" is none
                droppable = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
                free = int((level / limit).read_text()) - int((level / used).read_text())
                found.append(max(0, free + int(droppable.get(cache, 0))))
            if level in _CGROUP_ROOTS.values():
                break
    return min(found, default=None)


def lockable_bytes() -> int | None:
    """Most bytes of memory that this process may lock (``ulimit -l``); None: there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "CapEff" and int(value, 16) >> _CAP_IPC_LOCK & 1:
                return None
    return None if limit == resource.RLIM_INFINITY else limit


# Files with the limit, the use, the part of the use that can be dropped (a key of memory.stat), and the peak.
_CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.max_usage_in_bytes"),
    2: ("memory.max", "memory.current", "inactive_file", "memory.peak"),
}
_CGROUP_ROOTS = {1: Path("/sys/fs/cgroup/memory"), 2: Path("/sys/fs/cgroup")}


def _cgroups() -> list[tuple[int, Path]]:
    """The memory control groups of this process, each with the version of the cgroup interface."""
    found: list[tuple[int, Path]] = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                found.append((1, _CGROUP_ROOTS[1] / path.lstrip("/")))
            elif not controllers:
                found.append((2, _CGROUP_ROOTS[2] / path.lstrip("/")))
    return found


def _cgroup_peak() -> int | None:
    for version, directory in _cgroups():
        with contextlib.suppress(OSError, ValueError):
            return int((directory / _CGROUP_FILES[version][3]).read_text())
    return None
