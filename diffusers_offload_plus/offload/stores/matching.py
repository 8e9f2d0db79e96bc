"""Bytes that lie on disk already need not be written again.

A range of a file stands for a tensor if, and only if, all its bytes are equal. Sizes and samples only help to find
candidates; the proof is the comparison.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from ...errors import DiskTierError
from .checkpoint_files import ranges_of
from .disk import Piece
from .mapped_file import MappedFile, named_error

__all__ = ["KnownRanges"]

SAMPLE = 64  # bytes at each end, by which candidates are found


class _Source:
    """A file that is open only while something of it may be used: a store may hold more files than a process may
    open."""

    def __init__(self, reopen: Callable[[], MappedFile]) -> None:
        self._reopen = reopen
        self._file: MappedFile | None = None

    def open(self) -> MappedFile:
        if self._file is None:
            self._file = self._reopen()
        return self._file

    def close(self) -> None:
        self._file = None


class _Candidate(NamedTuple):
    source: _Source
    offset: int


class KnownRanges:
    """Ranges of files, each given out at most once: two tensors on one range of one mapping would share memory."""

    def __init__(self) -> None:
        self._by_sample: dict[tuple[int, bytes, bytes], list[_Candidate]] = defaultdict(list)

    def add(self, reopen: Callable[[], MappedFile]) -> None:
        """Offer every tensor of the safetensors file that ``reopen`` opens, now and whenever it may be used.

        Raises:
            DiskTierError: it cannot be opened, or is not a whole safetensors file.
        """
        source = _Source(reopen)
        file = source.open()
        for found in ranges_of(file):
            with named_error("read", file.path):
                head = os.pread(file.fileno(), min(SAMPLE, found.nbytes), found.offset)
                tail = os.pread(file.fileno(), min(SAMPLE, found.nbytes), found.offset + max(0, found.nbytes - SAMPLE))
            self._by_sample[found.nbytes, head, tail].append(_Candidate(source, found.offset))
        source.close()

    def take(self, address: int, nbytes: int) -> Piece | None:
        """A range whose bytes are those at ``address`` in memory, all compared; None if there is none left."""
        candidates = self._by_sample.get((nbytes, *_ends(address, nbytes)), [])
        for index, (source, offset) in enumerate(candidates):
            with contextlib.suppress(DiskTierError):  # gone, or shorter than it was: of no use
                file = source.open()
                if offset + nbytes <= file.size and file.equals(address, offset, nbytes):
                    file.check()  # changed since it was opened: what was compared may be gone
                    del candidates[index]
                    return Piece(file, offset, nbytes)
        return None


def _ends(address: int, nbytes: int) -> tuple[bytes, bytes]:
    count = min(SAMPLE, nbytes)
    return ctypes.string_at(address, count), ctypes.string_at(address + nbytes - count, count)
