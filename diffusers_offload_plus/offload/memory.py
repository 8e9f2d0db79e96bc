"""What memory the process takes, kind by kind, and giving back what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from pathlib import Path

__all__ = ["ProcessMemory", "give_memory_back", "process_memory"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """Resident memory of this process in bytes, from ``/proc/self/status``; None where the system does not say.

    Attributes:
        anonymous: memory that only swap could free.
        file_backed: pages of mapped files, which the system drops when it needs room, and reads again.
        cgroup_peak: the most its control group has had, page cache included.
    """

    anonymous: int | None
    file_backed: int | None
    cgroup_peak: int | None


def process_memory() -> ProcessMemory:
    """What the process takes now."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile"):
                found[name] = int(value.split()[0]) * 1024
    return ProcessMemory(anonymous=found.get("RssAnon"), file_backed=found.get("RssFile"), cgroup_peak=_cgroup_peak())


def give_memory_back() -> None:
    """Return to the system what the C library still holds of freed memory: it keeps small blocks otherwise."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _cgroup_peak() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for file in (
                Path("/sys/fs/cgroup/memory" + path, "memory.max_usage_in_bytes") if controllers == "memory" else None,
                Path("/sys/fs/cgroup" + path, "memory.peak") if not controllers else None,
            ):
                if file is not None and file.exists():
                    return int(file.read_text())
    return None
