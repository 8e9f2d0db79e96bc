"""Reusable host buffers through which weights pass on their way to the device."""

from __future__ import annotations

import contextlib
import logging
import mmap
import time
import weakref
from typing import Any

import torch

from ..formatting import first_line
from ..modes import engine_mode

__all__ = ["Staging", "pageable", "pinned", "registered"]

logger = logging.getLogger("diffusers_offload_plus")


class Staging:
    """Two host buffers, used in alternation. A buffer is filled anew once the last copy from it is over.

    Attributes:
        waited: seconds of waiting for a buffer.
    """

    def __init__(self, device: torch.device, *, pin: bool = True) -> None:
        self._device = device
        self._pin = pin
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._events: list[Any] = [None, None]
        self._index = 0
        self.waited = 0.0

    @property
    def nbytes(self) -> int:
        """Host bytes of both buffers now."""
        return sum(buffer.numel() for buffer in self._buffers if buffer is not None)

    def acquire(self, nbytes: int) -> torch.Tensor:
        """The first ``nbytes`` of the next buffer. Waits for the last copy from it."""
        index = self._index = 1 - self._index
        event = self._events[index]
        if event is not None:
            begin = time.perf_counter()
            event.synchronize()
            self.waited += time.perf_counter() - begin
            self._events[index] = None
        buffer = self._buffers[index]
        if buffer is None or buffer.numel() < nbytes:
            self._buffers[index] = None  # the old one is freed before the new one is allocated
            with engine_mode():
                buffer = pinned(nbytes, self._device) if self._pin else pageable(nbytes)
            self._buffers[index] = buffer
        return buffer[:nbytes]

    def release(self, event: Any) -> None:
        """Release the buffer that was acquired last. ``event`` is the end of the copy from it."""
        self._events[self._index] = event


def pageable(nbytes: int) -> torch.Tensor:
    """Uninitialised ordinary host memory: uint8, shape ``(nbytes,)``, whatever the default device."""
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu")


def pinned(nbytes: int, device: torch.device) -> torch.Tensor:
    """Uninitialised pinned host memory for copies to and from ``device``: uint8, shape ``(nbytes,)``.

    If the system does not allow to lock that much, the memory is pageable, and a warning is logged.
    """
    if device.type == "cuda":
        registered = _cuda_registered(nbytes)
        if registered is not None:
            return registered
    try:
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
    except RuntimeError as error:
        reason = first_line(error)
        logger.warning("%d bytes of host memory cannot be pinned (%s): copies from it are slower.", nbytes, reason)
        return pageable(nbytes)


def _cuda_registered(nbytes: int) -> torch.Tensor | None:
    # torch's pinned allocator rounds up to powers of two, which may take twice the memory of the model. Registering
    # pages that we allocate takes no more than needed.
    try:
        return registered(mmap.mmap(-1, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE))[:nbytes]
    except OSError:
        return None  # the caller falls back to torch's allocator


def registered(pages: mmap.mmap) -> torch.Tensor:
    """``pages`` as a uint8 tensor, pinned by the CUDA runtime for as long as the tensor exists.

    Raises:
        OSError: the runtime refuses. ``errno`` is an error number of CUDA, not of the system.
    """
    import numpy

    array = numpy.frombuffer(pages, dtype=numpy.uint8)
    runtime: Any = torch.cuda.cudart()
    address, portable = array.ctypes.data, 1
    result = int(runtime.cudaHostRegister(address, array.nbytes, portable))
    if result != 0:
        _clear_last_error()
        raise OSError(result, "cudaHostRegister failed")

    def unregister() -> None:
        with contextlib.suppress(RuntimeError):
            if int(runtime.cudaHostUnregister(address)) != 0:
                _clear_last_error()

    # The array is freed before its pages are unmapped. At interpreter exit the driver unregisters them itself.
    weakref.finalize(array, unregister).atexit = False
    return torch.from_numpy(array)


def _clear_last_error() -> None:
    """Take back the error that a failed call of the CUDA runtime leaves, for which the next kernel would be blamed.

    torch has no function that reads it, but each launch does, and raises it.
    """
    with contextlib.suppress(RuntimeError, AssertionError):  # the latter where torch has no CUDA
        torch.ones(1, device="cuda")
