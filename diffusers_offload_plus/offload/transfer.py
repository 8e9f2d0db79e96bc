"""Host-to-device copies as values: start, wait, drop.

[Note: compute waits on events]
A slab is allocated on the stream that will compute with it. The side stream first waits for that stream, so it
cannot overwrite memory the allocator has just taken back from it; the computing stream waits for the copy's event
before the first read. Freeing the slab afterwards is ordered by the computing stream alone. No step makes the
calling thread wait. With ``record_stream`` the slab belongs to the side stream instead, which need not wait for
computation; the allocator then learns of the use.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch

from .policy import OffloadPolicy

__all__ = ["Link", "Transfer"]


class Transfer:
    """A group's bytes on, or on their way to, the device.

    Attributes:
        slab: uint8 tensor of shape ``(nbytes,)`` on the device; its values may be read after :meth:`wait`.
    """

    __slots__ = ("_event", "_side_owned", "_stream", "slab")

    def __init__(self, slab: torch.Tensor, *, event: Any = None, stream: Any = None, side_owned: bool = False) -> None:
        self.slab = slab
        self._event = event
        self._stream = stream
        self._side_owned = side_owned

    def wait(self) -> None:
        """Order the current stream after the copy. Idempotent, and never blocks the calling thread."""
        if self._event is None:
            return
        current = torch.accelerator.current_stream(self.slab.device)
        current.wait_event(self._event)
        self._event = None
        if self._side_owned or current != self._stream:
            self.slab.record_stream(current)

    def cancel(self) -> None:
        """Make it safe to free a slab nobody will read."""
        if not self._side_owned:
            self.wait()


class Link:
    """The way from host to one device: allocation, copies and, with streams, the side stream they run on.

    Attributes:
        copies: host-to-device copies started.
        bytes: bytes they moved.
        live: device bytes held by what has been copied.
        peak: highest value of ``live``.
        reading_host: a copy started since the last :meth:`drain` may still be reading host memory.
    """

    def __init__(self, policy: OffloadPolicy) -> None:
        self.device = policy.device
        self._non_blocking = policy.non_blocking
        self._record_stream = policy.record_stream
        self._pins = policy.pins_host_memory
        self._stream: Any = torch.Stream(device=self.device) if policy.use_stream else None
        self._staging = _Staging(self.device) if policy.use_stream and policy.low_cpu_mem_usage else None
        self.copies = 0
        self.bytes = 0
        self.live = 0
        self.peak = 0
        self.reading_host = False

    def hold(self, nbytes: int) -> None:
        """Account for ``nbytes`` of device memory taken (negative: given back)."""
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    @property
    def staging_wait_seconds(self) -> float:
        """How long the calling thread has waited for a staging buffer (only with ``low_cpu_mem_usage``)."""
        return 0.0 if self._staging is None else self._staging.waited

    def allocate_host(self, nbytes: int) -> torch.Tensor:
        """Uninitialised host memory for one slab: uint8, shape ``(nbytes,)``, pinned if the policy pins."""
        if not self._pins or nbytes == 0:
            return torch.empty(nbytes, dtype=torch.uint8)
        return _pinned(nbytes, self.device)

    def start(self, host: torch.Tensor) -> Transfer:
        """Begin copying ``host`` (uint8, one-dimensional) to the device."""
        self.copies += 1
        self.bytes += host.numel()
        if self._stream is None:
            slab = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
            slab.copy_(host, non_blocking=self._non_blocking)
            return Transfer(slab)
        self.reading_host = True
        compute = torch.accelerator.current_stream(self.device)
        if not self._record_stream:
            slab = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
            self._stream.wait_stream(compute)
        with self._stream:
            if self._record_stream:
                slab = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
            if self._staging is None:
                slab.copy_(host, non_blocking=True)
            else:
                self._staging.copy(host, slab, self._stream)
            event = self._stream.record_event()
        return Transfer(slab, event=event, stream=compute, side_owned=self._record_stream)

    def drain(self) -> None:
        """Wait until no copy reads host memory any more; call before host memory of a slab is given up."""
        if self._stream is not None:
            self._stream.synchronize()
        self.reading_host = False


class _Staging:
    """Two pinned buffers through which pageable weights pass; each is refilled once its last copy has been made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._events: list[Any] = [None, None]
        self._turn = 0
        self.waited = 0.0

    def copy(self, host: torch.Tensor, slab: torch.Tensor, stream: Any) -> None:
        turn = self._turn = 1 - self._turn
        event = self._events[turn]
        if event is not None:
            begin = time.perf_counter()
            event.synchronize()
            self.waited += time.perf_counter() - begin
        buffer = self._buffers[turn]
        if buffer is None or buffer.numel() < host.numel():
            buffer = self._buffers[turn] = _pinned(host.numel(), self._device)
        part = buffer[: host.numel()]
        part.copy_(host)
        slab.copy_(part, non_blocking=True)
        self._events[turn] = stream.record_event()


def _pinned(nbytes: int, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        registered = _cuda_registered(nbytes)
        if registered is not None:
            return registered
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def _cuda_registered(nbytes: int) -> torch.Tensor | None:
    # torch's pinned allocator rounds up to powers of two, up to twice the model; registering whole pages of our own
    # does not.
    import mmap
    import weakref

    import numpy

    pages = mmap.mmap(-1, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    array = numpy.frombuffer(pages, dtype=numpy.uint8)
    runtime: Any = torch.cuda.cudart()
    address, portable = array.ctypes.data, 1
    if int(runtime.cudaHostRegister(address, array.nbytes, portable)) != 0:
        return None  # over the memory-lock limit, say; the caller falls back to torch's allocator

    def unregister() -> None:
        with contextlib.suppress(RuntimeError):
            runtime.cudaHostUnregister(address)

    # The array dies before the pages under it are unmapped; at interpreter exit the driver cleans up itself.
    weakref.finalize(array, unregister).atexit = False
    return torch.from_numpy(array)[:nbytes]
