"""The instruments: memory over time, and bytes copied between host and device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..offload.memory.auto_limit import DeviceMemory, tells_memory
from ..offload.memory.process import give_memory_back
from ..offload.model.tensors import plain_tensors

__all__ = [
    "HostMemory",
    "Inspector",
    "device_memory",
    "host_memory",
    "release_memory",
    "sampled_host_memory",
    "synchronize",
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


def host_memory() -> HostMemory:
    """What is held now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "RssFile")}
    return HostMemory(anonymous=sizes["RssAnon"] + sizes["RssShmem"], file=sizes["RssFile"])


def device_memory(device: torch.device) -> DeviceMemory | None:
    """What the allocator of a device says; ``None`` on the CPU and where the device does not tell."""
    return DeviceMemory(device) if tells_memory(device) else None


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def release_memory() -> None:
    """Return unused memory to the system, so that the next measurement does not start with memory of the last."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        torch.accelerator.empty_cache()
    if torch.cuda.is_available():
        torch._C._host_emptyCache()
    give_memory_back()


@functools.cache
def tells_host_memory(device: torch.device) -> bool:
    """Whether the host memory of this process can be measured without that of ``device``.

    It cannot where the device's memory is part of the process's own, as on the simulated device.
    """
    if device.type == "cpu":
        return True
    size, slack = 64 * MIB, 16 * MIB
    torch.zeros(1, device=device)
    before = host_memory().anonymous
    block = torch.zeros(size, dtype=torch.uint8, device=device)
    synchronize(device)
    inside = host_memory().anonymous - before > size - slack
    del block
    return not inside


@contextlib.contextmanager
def sampled_host_memory(baseline: HostMemory, interval: float = 0.02) -> Iterator[list[tuple[float, HostMemory]]]:
    """While the block runs, a thread samples host memory: ``time.perf_counter()``, and what is held beyond
    ``baseline``."""
    samples: list[tuple[float, HostMemory]] = []
    stop = threading.Event()

    def sample() -> None:
        now = host_memory()
        held = HostMemory(max(0, now.anonymous - baseline.anonymous), max(0, now.file - baseline.file))
        samples.append((time.perf_counter(), held))

    def run() -> None:
        while not stop.wait(interval):
            sample()

    thread = threading.Thread(target=run, name="host memory sampler", daemon=True)
    sample()
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
        sample()


class Inspector(TorchDispatchMode):
    """Counts copies between host and device while the block runs, and samples the device's memory.

    It sees every operation that is dispatched on the computing thread, whichever code calls it. Memory is sampled
    after an operation, at most every few milliseconds, so that samples are of moments when weights are in use.

    Attributes:
        to_device: bytes copied from host to device.
        to_host: bytes copied from device to host.
        samples: pairs of ``time.perf_counter()`` and bytes of tensors on the device.
    """

    def __init__(self, memory: DeviceMemory | None, interval: float = 0.002) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory
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
        if self._memory is not None and now >= self._next:
            self._next = now + self._interval
            self.samples.append((now, self._memory.taken()))
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
