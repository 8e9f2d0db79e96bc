"""What a test can ask the device: bytes, copies, races."""

from __future__ import annotations

import gc
from typing import Protocol

import torch

from tests import standin_cuda


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

    def __init__(self) -> None:
        self._base = self._base_of_blocks = 0

    @property
    def races(self) -> int:
        return 0

    @property
    def h2d(self) -> int:
        return 0

    @property
    def d2h(self) -> int:
        return 0

    @property
    def copies(self) -> int:
        return 0

    @property
    def pinned(self) -> int:
        return 0

    def reset(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._base, self._base_of_blocks = self._requested(), torch.cuda.memory_allocated()

    @staticmethod
    def _requested() -> int:
        """Bytes that tensors have, now that the device is idle; the blocks they are in are of multiples of 512."""
        torch.cuda.synchronize()
        torch.empty(1, device="cuda")  # what other streams have used goes back when the allocator is asked for more
        return int(torch.cuda.memory_stats()["requested_bytes.all.current"])

    @property
    def race_log(self) -> list[str]:
        return []

    @property
    def live(self) -> int:
        return self._requested() - self._base

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self._base_of_blocks

    @property
    def leaked(self) -> int:
        return max(0, self.live)


class StandInMeter(CudaMeter):
    """What the stand-in for CUDA counts as well: copies and pinned memory. A race shows in what a program computes."""

    def __init__(self) -> None:
        super().__init__()
        torch.accelerator.empty_host_cache()
        self._pinned_base = standin_cuda.pinned_bytes()

    def reset(self) -> None:
        super().reset()
        standin_cuda.reset_stats()

    @property
    def h2d(self) -> int:
        return standin_cuda.stats().h2d_bytes

    @property
    def d2h(self) -> int:
        return standin_cuda.stats().d2h_bytes

    @property
    def copies(self) -> int:
        counted = standin_cuda.stats()
        return counted.h2d + counted.d2h + counted.d2d

    @property
    def pinned(self) -> int:
        torch.accelerator.empty_host_cache()  # what PyTorch keeps for the next tensor is nobody's
        return standin_cuda.pinned_bytes() - self._pinned_base


def meter_for(device: torch.device) -> Meter:
    """The meter of ``device``."""
    if device.type == "sim":
        return SimulatedMeter()
    return StandInMeter() if standin_cuda.is_loaded() else CudaMeter()
