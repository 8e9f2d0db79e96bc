"""Measurements: memory over time, bytes copied between host and device, the end of each step."""

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

from ..offload.model.tensors import plain_tensors

__all__ = [
    "DeviceMemory",
    "HostMemory",
    "HostSampler",
    "Inspector",
    "StepClock",
    "Timeline",
    "host_memory",
    "release_memory",
    "tells_host_memory",
]

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class HostMemory:
    """Host memory of this process, in bytes.

    Attributes:
        anonymous: memory that has to fit in RAM: allocations, and memory shared with a device, as pinned memory may
            be.
        file: pages of mapped files (libraries, checkpoints), which the system can drop and read again.
    """

    anonymous: int
    file: int


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Memory over time.

    Attributes:
        host: pairs of seconds and bytes; ``device``: likewise, empty on the CPU and for devices that do not tell.
        marks: pairs of seconds and the name of what happened then.
    """

    host: tuple[tuple[float, int], ...] = ()
    device: tuple[tuple[float, int], ...] = ()
    marks: tuple[tuple[float, str], ...] = ()


def host_memory() -> HostMemory:
    """The host memory of this process now."""
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
    """Return unused memory to the system, so that the next measurement does not start with memory of the last."""
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
    """The figures of a device's allocator. All are ``None`` on the CPU, and for devices that do not tell."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device.type)

    def allocated(self) -> int | None:
        """Bytes of tensors on the device now."""
        return self._ask("memory_allocated")

    def peak(self) -> int | None:
        """Most bytes of tensors on the device since :meth:`reset_peak`."""
        return self._ask("max_memory_allocated")

    def reset_peak(self) -> None:
        """Measure the peak from now on."""
        reset = getattr(self._module, "reset_peak_memory_stats", None)
        if reset is not None:
            reset(self._device)

    def synchronize(self) -> None:
        """Wait until the device has done all work issued so far."""
        if self._module is not None:
            self._module.synchronize()

    def _ask(self, name: str) -> int | None:
        function = getattr(self._module, name, None)
        return None if function is None else int(function(self._device))


def tells_host_memory(device: torch.device) -> bool:
    """Whether the host memory of this process can be measured without that of ``device``.

    It cannot where the device's memory is part of the process's own, as on the simulated device.
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


class HostSampler:
    """Samples host memory on a thread of its own while the block runs.

    Attributes:
        begin: when the block began, by ``time.perf_counter``.
        samples: pairs of seconds since then and memory beyond ``baseline``.
    """

    def __init__(self, baseline: HostMemory, interval: float = 0.02) -> None:
        self._baseline = baseline
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host memory sampler", daemon=True)
        self.begin = 0.0
        self.samples: list[tuple[float, HostMemory]] = []

    def __enter__(self) -> HostSampler:
        self.begin = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def peak(self) -> HostMemory:
        """The most memory of each kind in any sample."""
        return HostMemory(
            anonymous=max(memory.anonymous for _, memory in self.samples),
            file=max(memory.file for _, memory in self.samples),
        )

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        now, before = host_memory(), self._baseline
        beyond = HostMemory(anonymous=max(0, now.anonymous - before.anonymous), file=max(0, now.file - before.file))
        self.samples.append((time.perf_counter() - self.begin, beyond))


class Inspector(TorchDispatchMode):
    """Counts copies between host and device while the block runs, and samples the device's memory.

    It sees every operation that is dispatched on the computing thread, whichever code calls it. Memory is sampled
    after an operation, at most every few milliseconds, so that samples are of moments when weights are in use.

    Attributes:
        to_device: bytes copied from host to device.
        to_host: bytes copied from device to host.
        samples: pairs of ``time.perf_counter()`` and bytes of tensors on the device.
    """

    def __init__(self, device: DeviceMemory, interval: float = 0.002) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._interval = interval
        self._next = 0.0
        self.to_device = 0
        self.to_host = 0
        self.samples: list[tuple[float, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self._count(args[0], result)
        elif func is torch.ops.aten.copy_.default:
            self._count(args[1], args[0])
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + self._interval
            allocated = self._device.allocated()
            if allocated is not None:
                self.samples.append((now, allocated))
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
    """A callback for the end of each step: waits for the device, and records the time and what ``also`` returns.

    Attributes:
        ends: when steps ended, by ``time.perf_counter``.
    """

    def __init__(self, wait: Callable[[], None], also: Callable[[], tuple[int, int]] | None = None) -> None:
        self._wait = wait
        self._also = also
        self.ends: list[float] = []
        self._noted: list[tuple[int, int]] = []

    def __call__(self, step: int) -> None:
        self._wait()
        self.ends.append(time.perf_counter())
        if self._also is not None:
            self._noted.append(self._also())

    @property
    def seconds(self) -> tuple[float, ...]:
        """Seconds from the end of each step to the end of the next. The first step's beginning is not known."""
        return tuple(later - earlier for earlier, later in zip(self.ends, self.ends[1:], strict=False))

    @property
    def differences(self) -> tuple[tuple[int, int], ...]:
        """By how much the recorded values of ``also`` grew from step to step."""
        pairs = zip(self._noted, self._noted[1:], strict=False)
        return tuple((b[0] - a[0], b[1] - a[1]) for a, b in pairs)
