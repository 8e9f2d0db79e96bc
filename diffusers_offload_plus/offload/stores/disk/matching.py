"""Bytes that lie on disk already need not be written again.

A range of a file stands for a tensor if, and only if, all its bytes are equal. Sizes and samples only help to find
candidates; the proof is the comparison. It is most of the time of a set-up, and runs at the speed of memory or disk,
so several threads compare: one core does not reach either.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ....errors import DiskTierError
from ..mapped_file import MappedFile, named_error
from .safetensors_files import ranges_of
from .slab import Piece

__all__ = ["KnownRanges"]

SAMPLE = 64  # bytes at each end, by which candidates are found
THREADS = 4  # more than memory needs, for a disk that answers several requests at once

_Sample = tuple[int, bytes, bytes]


class _Source:
    """A file that is open only while something of it may be used: a store may hold more files than a process may
    open."""

    def __init__(self, reopen: Callable[[], MappedFile]) -> None:
        self._reopen = reopen
        self._file: MappedFile | None = None
        self._lock = threading.Lock()

    def open(self) -> MappedFile:
        with self._lock:
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
        self._by_sample: dict[_Sample, list[_Candidate]] = defaultdict(list)

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

    def take(self, wanted: Sequence[tuple[int, int]]) -> list[Piece | None]:
        """For each ``(address, nbytes)`` a range whose bytes are those at ``address`` in memory, all compared; None
        where there is none left."""
        found: list[Piece | None] = [None] * len(wanted)
        rivals: dict[_Sample, list[int]] = defaultdict(list)
        for index, (address, nbytes) in enumerate(wanted):
            sample = (nbytes, *_ends(address, nbytes))
            if sample in self._by_sample:
                rivals[sample].append(index)

        def match(sample: _Sample) -> None:
            for index in rivals[sample]:  # one after the other: they may want the same range
                found[index] = self._first_equal(sample, wanted[index][0])

        largest_first = sorted(rivals, key=lambda sample: -sample[0])
        if len(rivals) < 2:
            for sample in largest_first:
                match(sample)
            return found
        with concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="offload-plus-proof") as pool:
            for matching in [pool.submit(match, sample) for sample in largest_first]:
                matching.result()
        return found

    def _first_equal(self, sample: _Sample, address: int) -> Piece | None:
        candidates, nbytes = self._by_sample[sample], sample[0]
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
