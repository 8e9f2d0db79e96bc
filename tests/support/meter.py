"""What a test can ask the device: bytes, copies, races."""

from __future__ import annotations

import gc
from typing import Protocol

import torch


class Meter(Protocol):
    """Counters since :meth:`reset`; pinned bytes since the meter was made. A device that cannot count something
    answers 0 for races and leaks."""

    exact: bool

    def reset(self) -> None:
        """Start counting anew."""

    @property
    def races(self) -> int: ...
    @property
    def race_log(self) -> list[str]: ...
    @property
    def live(self) -> int: ...
    @property
    def peak(self) -> int: ...
    @property
    def leaked(self) -> int: ...
    @property
    def h2d(self) -> int: ...
    @property
    def d2h(self) -> int: ...
    @property
    def copies(self) -> int: ...
    @property
    def pinned(self) -> int: ...


class SimulatedMeter:
    """Byte-exact counters of the simulated accelerator."""

    exact = True

    def __init__(self) -> None:
        from tests import simulated

        self._simulated = simulated
        self._base = 0
        self._pinned_base = simulated.stats().pinned

    def reset(self) -> None:
        gc.collect()
        self._simulated.reset_stats()
        self._base = self._simulated.stats().live

    @property
    def races(self) -> int:
        return self._simulated.stats().races

    @property
    def race_log(self) -> list[str]:
        return list(self._simulated.stats().race_log)

    @property
    def live(self) -> int:
        return self._simulated.stats().live - self._base

    @property
    def peak(self) -> int:
        return self._simulated.stats().peak - self._base

    @property
    def leaked(self) -> int:
        return self.live

    @property
    def h2d(self) -> int:
        return self._simulated.stats().h2d

    @property
    def d2h(self) -> int:
        return self._simulated.stats().d2h

    @property
    def copies(self) -> int:
        return self._simulated.stats().copies

    @property
    def pinned(self) -> int:
        return self._simulated.stats().pinned - self._pinned_base


class CudaMeter:
    """What the CUDA allocator counts. Copies and races are the profiler's and the sanitizer's business."""

    exact = False
    races = h2d = d2h = copies = pinned = 0

    def __init__(self) -> None:
        self._base = 0

    def reset(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._base = torch.cuda.memory_allocated()

    @property
    def race_log(self) -> list[str]:
        return []

    @property
    def live(self) -> int:
        return torch.cuda.memory_allocated() - self._base

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self._base

    @property
    def leaked(self) -> int:
        return max(0, self.live)


def meter_for(device: torch.device) -> Meter:
    """The meter of ``device``."""
    return SimulatedMeter() if device.type == "sim" else CudaMeter()
