"""The instruments: memory over time, bytes copied between host and device, the end of each step."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..offload.tensors import plain_tensors

__all__ = ["CopyCounter", "DeviceMemory", "HostMemory", "MemorySampler", "Sample", "StepClock", "host_memory", "release_memory", "tells_host_memory"]

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory that this process holds.

    ``anonymous`` is what has to fit into memory: allocations, and memory shared with a device, as pinned memory may be.
    ``file`` are pages of mapped files (libraries, checkpoints), which the system can drop and read again.
    """

    anonymous: int
    file: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """Memory at one moment; ``device`` is ``None`` where it cannot be told, and on the CPU."""

    seconds: float
    device: int | None
    host: HostMemory


def host_memory() -> HostMemory:
    """What is held now."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return _host_memory_elsewhere()
    fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Rss"))
    sizes = {name: int(value.split()[0]) * 1024 for name, value in fields.items()}
    return HostMemory(anonymous=sizes["RssAnon"] + sizes["RssShmem"], file=sizes["RssFile"])


def _host_memory_elsewhere() -> HostMemory:
    import psutil

    return HostMemory(anonymous=psutil.Process().memory_info().rss, file=0)


def release_memory() -> None:
    """Give back what nobody uses, so that the next measurement does not start with leftovers of the last."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        torch.accelerator.empty_cache()
    if torch.cuda.is_available():
        torch._C._host_emptyCache()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None


class DeviceMemory:
    """What the allocator of a device says; every answer is ``None`` on the CPU and where the device does not tell."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device.type)

    def allocated(self) -> int | None:
        """Bytes of tensors on the device now."""
        return self._ask("memory_allocated")

    def reserved(self) -> int | None:
        """Bytes that the allocator holds, in use or not."""
        return self._ask("memory_reserved")

    def peak(self) -> int | None:
        """The most bytes of tensors since :meth:`reset_peak`."""
        return self._ask("max_memory_allocated")

    def reset_peak(self) -> None:
        """Start a new peak."""
        reset = getattr(self._module, "reset_peak_memory_stats", None)
        if reset is not None:
            reset(self._device)

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self._module is not None:
            self._module.synchronize()

    def _ask(self, name: str) -> int | None:
        function = getattr(self._module, name, None)
        return None if function is None else int(function(self._device))


def tells_host_memory(device: torch.device) -> bool:
    """Whether this process's memory without the device's can be told.

    On some devices it cannot: their memory lies in that of the process, and they do not say how much of it they keep.
    """
    if device.type == "cpu":
        return True
    memory, size, slack = DeviceMemory(device), 64 * MIB, 16 * MIB
    torch.zeros(1, device=device)
    before = host_memory().anonymous
    block = torch.zeros(size, dtype=torch.uint8, device=device)
    memory.synchronize()
    inside = host_memory().anonymous - before > size - slack
    del block
    return not inside


class MemorySampler:
    """Samples memory on a thread of its own while the block runs.

    Attributes:
        samples: what was seen, in order; seconds count from the beginning of the block.
        marks: moments that were given a name.
    """

    def __init__(self, device: DeviceMemory, baseline: HostMemory, interval: float = 0.02) -> None:
        self._device = device
        self._baseline = baseline
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory sampler", daemon=True)
        self._begin = 0.0
        self.samples: list[Sample] = []
        self.marks: list[tuple[float, str]] = []

    def __enter__(self) -> MemorySampler:
        self._begin = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def mark(self, name: str) -> None:
        """Name this moment."""
        self._sample()
        self.marks.append((time.perf_counter() - self._begin, name))

    def peak_host(self) -> HostMemory:
        """The most of each kind that was seen."""
        return HostMemory(
            anonymous=max(sample.host.anonymous for sample in self.samples),
            file=max(sample.host.file for sample in self.samples),
        )

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        now = host_memory()
        grown = HostMemory(
            anonymous=max(0, now.anonymous - self._baseline.anonymous), file=max(0, now.file - self._baseline.file)
        )
        self.samples.append(Sample(time.perf_counter() - self._begin, self._device.allocated(), grown))


class CopyCounter(TorchDispatchMode):
    """Counts the bytes of every copy between host and device that is dispatched while the block runs, whoever asks for it.

    Attributes:
        to_device: bytes copied from host to device.
        to_host: bytes copied from device to host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.to_device = 0
        self.to_host = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self._count(args[0], result)
        elif func is torch.ops.aten.copy_.default:
            self._count(args[1], args[0])
        return result

    def _count(self, source: torch.Tensor, target: torch.Tensor) -> None:
        sources = dict(plain_tensors(source))
        for name, to in plain_tensors(target):
            origin = sources.get(name)
            if origin is None or (origin.device.type == "cpu") == (to.device.type == "cpu"):
                continue
            if origin.device.type == "cpu":
                self.to_device += origin.nbytes
            else:
                self.to_host += origin.nbytes


class StepClock:
    """Called at the end of each step: waits for the device, and notes the time and what ``also`` returns."""

    def __init__(self, wait: Callable[[], None], also: Callable[[], tuple[int, int]] | None = None) -> None:
        self._wait = wait
        self._also = also
        self._ends: list[float] = []
        self._noted: list[tuple[int, int]] = []

    def __call__(self, step: int) -> None:
        self._wait()
        self._ends.append(time.perf_counter())
        if self._also is not None:
            self._noted.append(self._also())

    @property
    def seconds(self) -> tuple[float, ...]:
        """From the end of each step to that of the next: the first step has no beginning that can be seen from outside."""
        return tuple(later - earlier for earlier, later in zip(self._ends, self._ends[1:], strict=False))

    @property
    def differences(self) -> tuple[tuple[int, int], ...]:
        """By how much what was noted grew from step to step."""
        pairs = zip(self._noted, self._noted[1:], strict=False)
        return tuple((b[0] - a[0], b[1] - a[1]) for a, b in pairs)
