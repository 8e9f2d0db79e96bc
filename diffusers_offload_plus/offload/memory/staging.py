"""Reusable host buffers through which weights pass on their way to the device."""

from __future__ import annotations

import contextlib
import logging
import mmap
import time
import weakref
from typing import Any

import torch

from ..modes import engine_mode

__all__ = ["Staging", "pinned", "registered"]

logger = logging.getLogger("diffusers_offload_plus")


class Staging:
    """Two buffers, used in turn; one is filled anew once the copy last made from it is over.

    Attributes:
        waited: seconds spent waiting for a buffer.
    """

    def __init__(self, device: torch.device, *, pin: bool = True) -> None:
        self._device = device
        self._pin = pin
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._events: list[Any] = [None, None]
        self._turn = 0
        self.waited = 0.0

    @property
    def nbytes(self) -> int:
        """Host bytes the buffers take now."""
        return sum(buffer.numel() for buffer in self._buffers if buffer is not None)

    def acquire(self, nbytes: int) -> torch.Tensor:
        """The next buffer's first ``nbytes``; waits for the copy that was last made from it."""
        turn = self._turn = 1 - self._turn
        event = self._events[turn]
        if event is not None:
            begin = time.perf_counter()
            event.synchronize()
            self.waited += time.perf_counter() - begin
            self._events[turn] = None
        buffer = self._buffers[turn]
        if buffer is None or buffer.numel() < nbytes:
            self._buffers[turn] = None  # the old one is given back before the new one is asked for
            with engine_mode():
                buffer = pinned(nbytes, self._device) if self._pin else torch.empty(nbytes, dtype=torch.uint8)
            self._buffers[turn] = buffer
        return buffer[:nbytes]

    def release(self, event: Any) -> None:
        """The buffer acquired last is free again once ``event`` has happened."""
        self._events[self._turn] = event


def pinned(nbytes: int, device: torch.device) -> torch.Tensor:
    """Uninitialised page-locked host memory, for copies to and from ``device``: uint8, shape ``(nbytes,)``. Pageable
    memory where the system does not allow that much to be locked, which is logged."""
    if device.type == "cuda":
        registered = _cuda_registered(nbytes)
        if registered is not None:
            return registered
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("%d bytes of host memory cannot be pinned (%s): copies from there are slower.", nbytes, reason)
        return torch.empty(nbytes, dtype=torch.uint8)


def _cuda_registered(nbytes: int) -> torch.Tensor | None:
    # torch's pinned allocator rounds up to powers of two, up to twice the model; registering whole pages of our own
    # does not.
    try:
        return registered(mmap.mmap(-1, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE))[:nbytes]
    except OSError:
        return None  # the caller falls back to torch's allocator


def registered(pages: mmap.mmap) -> torch.Tensor:
    """``pages``, locked in memory and known to the CUDA runtime until the result is gone: uint8, as long as they are.

    Raises:
        OSError: the runtime refuses: its error number, which is none of the system's.
    """
    import numpy

    array = numpy.frombuffer(pages, dtype=numpy.uint8)
    runtime: Any = torch.cuda.cudart()
    address, portable = array.ctypes.data, 1
    result = int(runtime.cudaHostRegister(address, array.nbytes, portable))
    if result != 0:
        raise OSError(result, "cudaHostRegister failed")

    def unregister() -> None:
        with contextlib.suppress(RuntimeError):
            runtime.cudaHostUnregister(address)

    # The array dies before the pages under it are unmapped; at interpreter exit the driver cleans up itself.
    weakref.finalize(array, unregister).atexit = False
    return torch.from_numpy(array)
