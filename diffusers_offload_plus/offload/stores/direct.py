"""Reads that go from the file straight into memory, past the page cache.

[Note: when to read past the cache]
Set-up compared every byte, so all of a file has been in the page cache. What is there is copied from there, faster
than any disk. What is no longer there was evicted: the weights are more than memory can hold, and reading them by way
of the cache would evict others, to be read again in turn. So such ranges are read past it, which also spares a copy
and most of the processor's time. That memory may be free again one day is noticed because every few times the range
is read by way of the cache.

[Note: alignment]
The system reads past its cache only whole pages of the file into memory that is page-aligned. A range begins anywhere,
and so does the memory it is for. The whole pages in the middle are read to the next aligned address at or above where
they belong, and moved down; the ends, less than two pages each, are read as usual.

[Note: forks]
While the disk writes into memory of a process that forks, older systems may give the process a copy of a page and let
the disk finish the other one. A fork in the middle of a read is noticed, and the read is done again as usual.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading

import torch

__all__ = ["DirectReads", "in_memory", "residency_is_told"]

PAGE = mmap.PAGESIZE
SMALLEST = 1 << 20  # bytes; below, the time of a request to the disk is longer than the copy that is spared
CHUNK = 32 << 20  # bytes asked for at once: the disk sees many requests, and what is moved is still in the caches
THROUGH_CACHE = 4  # every so many times; see [Note: when to read past the cache]
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))  # the one bit that has a meaning, of each page's byte
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS)


class DirectReads:
    """The direct way into one file, whose descriptor stays the caller's.

    Attributes:
        bytes: how many have been read this way.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._refused = not hasattr(os, "O_DIRECT")
        self._missed: dict[int, int] = {}
        self._lock = threading.Lock()
        self.bytes = 0

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; nothing is read this way any more."""
        self._refused = True
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def worthwhile(self, address: int, offset: int, nbytes: int) -> bool:
        """Whether to try: the mapped range at ``address``, which is at ``offset`` of the file, is long enough and
        mostly not in memory."""
        if self._refused or nbytes < SMALLEST or in_memory(address, nbytes) > 0.5:
            return False
        with self._lock:
            self._missed[offset] = missed = self._missed.get(offset, 0) + 1
        return missed % THROUGH_CACHE != 0

    def read(self, descriptor: int, target: torch.Tensor, offset: int) -> tuple[int, int]:
        """Read the whole pages in the range at ``offset`` into ``target`` (uint8, on the CPU); which part of it has
        its bytes now. The rest is as before, or scribbled on. ``descriptor`` is of the file.

        Raises:
            OSError: the disk could not be read.
        """
        direct = self._open(descriptor)
        first = -offset % PAGE  # in ``target``: where the first whole page belongs
        shift = -(target.data_ptr() + first) % PAGE  # and how far above that the next aligned address is
        length = (target.numel() - first - shift) // PAGE * PAGE
        if direct is None or length <= 0:
            return 0, 0
        view = memoryview(target.numpy())  # type: ignore[arg-type]
        done = 0
        while done < length:
            size = min(CHUNK, length - done)
            start = first + done
            forks = _forks
            try:
                count = os.preadv(direct, [view[start + shift : start + shift + size]], offset + start)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._refused = True  # the descriptor stays: others may be reading
                break
            if forks != _forks:
                break
            if shift:
                ctypes.memmove(target.data_ptr() + start, target.data_ptr() + start + shift, count)
            done += count
            if count < size and (count == 0 or count % PAGE):
                break  # the file ends here: reading as usual says so
        self.bytes += done
        return first, first + done

    def _open(self, descriptor: int) -> int | None:
        with self._lock:
            if self._descriptor is None and not self._refused:
                try:
                    self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                except OSError:
                    self._refused = True  # by the file system, say, or for want of descriptors
            return self._descriptor


def in_memory(address: int, nbytes: int) -> float:
    """The share of the mapped range whose pages the system has in memory; 1 where that cannot be told.

    Of files for which :func:`residency_is_told` is False it never can be.
    """
    start = address // PAGE * PAGE
    count = -(-(address + nbytes - start) // PAGE)
    pages = (ctypes.c_char * count)()  # asked for in each pass for each range, and much cheaper than a tensor
    if _mincore()(start, address + nbytes - start, pages) != 0:
        return 1.0
    return pages.raw.translate(_LOWEST_BIT).count(1) / count


def residency_is_told(descriptor: int) -> bool:
    """Whether the system tells this process which pages of the file are in memory: it does so to those that may write
    the file, and to its owner."""
    status = os.fstat(descriptor)
    return status.st_uid == os.geteuid() or os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)


def _count_fork() -> None:
    global _forks
    _forks += 1


_forks = 0
os.register_at_fork(before=_count_fork)


def _mincore() -> ctypes._NamedFuncPointer:
    global _MINCORE
    if _MINCORE is None:
        _MINCORE = ctypes.CDLL(None).mincore
        _MINCORE.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return _MINCORE


_MINCORE: ctypes._NamedFuncPointer | None = None
