"""A simulated accelerator for tests: torch device ``"sim"``. See README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .device import (
    Copy,
    DeviceUsage,
    Stats,
    allocations,
    capacity,
    copy_log,
    logged_copies,
    register,
    reset_stats,
    set_copy_log,
    stats,
    trim,
)
from .virtual_time import compute_for, host_busy_for, host_seconds, set_compute, set_link, timing

__all__ = [
    "DEVICE",
    "Copy",
    "DeviceUsage",
    "Stats",
    "allocations",
    "capacity",
    "compute_for",
    "copy_log",
    "host_busy_for",
    "host_seconds",
    "logged_copies",
    "register",
    "reset_stats",
    "set_compute",
    "set_copy_log",
    "set_link",
    "stats",
    "timing",
    "trim",
]

if TYPE_CHECKING:
    DEVICE: torch.device


def __getattr__(name: str) -> torch.device:
    # The device type has its name only once it is registered.
    if name == "DEVICE":
        register()
        return torch.device("sim", 0)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
