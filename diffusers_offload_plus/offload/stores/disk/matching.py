"""Finding weights that lie on disk already, so that they need not be written again.

A range of a file stands for a weight if, and only if, all its bytes are equal. Sizes and samples only help to find
candidates; the comparison is the proof. It takes most of the time of a set-up and runs at the speed of memory or disk.
One core reaches neither, so several threads compare.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import os
from collections import defaultdict
from collections.abc import Callable, Sequence

from ....errors import DiskTierError
from ..mapped_file import FileRange, MappedFile, is_shortage, named_error
from .safetensors_files import ranges_of

__all__ = ["KnownRanges"]

SAMPLE = 64  # bytes at each end, by which candidates are found
THREADS = 4  # more than memory needs, for a disk that answers several requests at once

_Sample = tuple[int, bytes, bytes]
_Open = Callable[[], MappedFile]


class KnownRanges:
    """Ranges of files, each given out at most once: two tensors on one range of one mapping would share memory."""

    def __init__(self) -> None:
        self._by_sample: dict[_Sample, list[tuple[_Open, int]]] = defaultdict(list)

    def add(self, open_file: _Open) -> None:
        """Offer every tensor of a safetensors file.

        Args:
            open_file: opens it: now, and again when a tensor of it may be used. In between it is closed, for a store
                may hold more files than a process may open.

        Raises:
            DiskTierError: it cannot be opened, or is not a whole safetensors file.
        """
        file, open_once = open_file(), functools.cache(open_file)
        for found in ranges_of(file):
            with named_error("read", file.path):
                head = os.pread(file.fileno(), min(SAMPLE, found.nbytes), found.offset)
                tail = os.pread(file.fileno(), min(SAMPLE, found.nbytes), found.offset + max(0, found.nbytes - SAMPLE))
            self._by_sample[found.nbytes, head, tail].append((open_once, found.offset))

    def take(self, wanted: Sequence[tuple[int, int]]) -> list[FileRange | None]:
        """For each ``(address, nbytes)`` a range whose bytes are those at ``address`` in memory, all compared; None
        where none is left."""
        found: list[FileRange | None] = [None] * len(wanted)
        rivals: dict[_Sample, list[int]] = defaultdict(list)
        for index, (address, nbytes) in enumerate(wanted):
            sample = (nbytes, *_ends(address, nbytes))
            if sample in self._by_sample:
                rivals[sample].append(index)

        def match(sample: _Sample) -> None:
            for index in rivals[sample]:  # one after the other: they may want the same range
                found[index] = self._first_equal(sample, wanted[index][0])

        with concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="offload-plus-proof") as pool:
            for matching in [pool.submit(match, sample) for sample in sorted(rivals, reverse=True)]:  # largest first
                matching.result()
        return found

    def _first_equal(self, sample: _Sample, address: int) -> FileRange | None:
        candidates, nbytes = self._by_sample[sample], sample[0]
        for index, (open_once, offset) in enumerate(candidates):
            try:
                file = open_once()
                if offset + nbytes <= file.size and file.equals(address, offset, nbytes):
                    file.check()  # changed since it was opened: what was compared may be gone
                    del candidates[index]
                    return FileRange(file, offset, nbytes)
            except DiskTierError as error:
                if is_shortage(error):
                    raise
                # Else it is gone, or shorter than it was: of no use.
        return None


def _ends(address: int, nbytes: int) -> tuple[bytes, bytes]:
    count = min(SAMPLE, nbytes)
    return ctypes.string_at(address, count), ctypes.string_at(address + nbytes - count, count)
