"""Whether the pages of a mapped file are in memory, so that touching them reads nothing from disk."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os

__all__ = ["PAGE", "in_memory", "residency_is_told"]

PAGE = mmap.PAGESIZE
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))  # of each page's byte only this bit has a meaning


def in_memory(address: int, nbytes: int) -> bool:
    """Whether the system has all pages of the mapped range in memory; False where it does not say.

    The answer is only to be trusted for files for which :func:`residency_is_told` is True.
    """
    start = address // PAGE * PAGE
    count = -(-(address + nbytes - start) // PAGE)
    pages = (ctypes.c_char * count)()  # asked for in each pass for each range, and much cheaper than a tensor
    if _libc().mincore(start, address + nbytes - start, pages) != 0:
        return False
    return b"\0" not in pages.raw.translate(_LOWEST_BIT)


def residency_is_told(descriptor: int) -> bool:
    """Whether the system tells this process which pages of the file are in memory.

    It tells the owner of the file and those who may write it. To others it calls every page present.
    """
    status = os.fstat(descriptor)
    return status.st_uid == os.geteuid() or os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return library
