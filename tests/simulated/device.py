"""Registers the simulated accelerator as torch device ``"sim"``, and reads and sets what tests care about.

Example::

    from tests.simulated import DEVICE, reset_stats, stats

    reset_stats()
    x = torch.randn(3).to(DEVICE)
    assert stats().h2d == 12 and not stats().races
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Literal, NamedTuple

import torch

from .build import load_extension

__all__ = [
    "Copy",
    "DeviceUsage",
    "Stats",
    "allocations",
    "capacity",
    "copy_log",
    "extension",
    "logged_copies",
    "register",
    "reset_stats",
    "set_copy_log",
    "stats",
    "trim",
]


class DeviceUsage(NamedTuple):
    """Bytes of one device."""

    live: int
    peak: int


class Stats(NamedTuple):
    """What happened since the last ``reset_stats``; ``live`` and ``pinned`` are what is held now."""

    live: int
    """Bytes of device memory allocated now, all devices together."""
    peak: int
    h2d: int
    """Bytes of explicit host-to-device copies."""
    d2h: int
    copies: int
    """Explicit copies of any kind, those within the device too."""
    pinned: int
    """Bytes of pinned host memory allocated now."""
    peak_pinned: int
    races: int
    """Accesses and releases of memory that nothing orders after an earlier, conflicting use."""
    race_log: tuple[str, ...]
    """A sentence for each of the first hundred races."""
    host_syncs: int
    """How often the calling thread waited for the device, or would have on a real one."""
    devices: tuple[DeviceUsage, ...]


class Copy(NamedTuple):
    """One explicit copy."""

    kind: Literal["h2d", "d2h", "d2d"]
    nbytes: int
    stream: int
    """``stream_id`` of the stream it was issued on; 0 is the default stream."""


_lock = threading.Lock()
_extension: ModuleType | None = None


def register() -> None:
    """Build and load the backend, and register device ``"sim"`` with PyTorch. Calls after the first do nothing."""
    global _extension
    with _lock:
        if _extension is not None:
            return
        loaded = load_extension()
        from . import backend

        torch.utils.rename_privateuse1_backend("sim")
        torch._register_device_module("sim", backend)
        torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
        loaded.register_device()
        _extension = loaded


def extension() -> ModuleType:
    """Return the C++ side."""
    register()
    assert _extension is not None
    return _extension


def stats() -> Stats:
    """Return the counters."""
    values = extension().stats()
    values["devices"] = tuple(DeviceUsage(*usage) for usage in values["devices"])
    return Stats(**values)


def reset_stats() -> None:
    """Set the counters to zero and the peaks to what is live. Streams, events and uses of memory are not forgotten."""
    extension().reset_stats()


def trim() -> None:
    """Run everything queued, and return the quarantine of freed memory to the system."""
    extension().trim()


def set_copy_log(enabled: bool) -> None:
    """Start a new, empty log of copies, or stop logging."""
    extension().set_copy_log(enabled)


def copy_log() -> tuple[Copy, ...]:
    """Return the copies logged since ``set_copy_log(True)`` or the last ``reset_stats``."""
    return tuple(Copy(*record) for record in extension().copy_log())


@contextlib.contextmanager
def logged_copies() -> Iterator[list[Copy]]:
    """Log copies within the block; the list is filled at its end."""
    log: list[Copy] = []
    set_copy_log(True)
    try:
        yield log
    finally:
        log.extend(copy_log())
        set_copy_log(False)


@contextlib.contextmanager
def capacity(nbytes: int, device: int = 0) -> Iterator[None]:
    """Within the block, ``device`` has ``nbytes`` of memory: more raises ``torch.OutOfMemoryError``."""
    previous = extension().capacity(device)
    extension().set_capacity(device, nbytes)
    try:
        yield
    finally:
        extension().set_capacity(device, previous)


@contextlib.contextmanager
def allocations(hook: Callable[[str, int], None]) -> Iterator[None]:
    """Within the block, ``hook(space, nbytes)`` is called before each allocation that PyTorch makes, on any thread:
    ``space`` is "device", "pinned" or "host" (ordinary host memory). What it raises is what the allocation raises."""
    extension().set_allocation_hook(hook)
    try:
        yield
    finally:
        extension().set_allocation_hook(None)
