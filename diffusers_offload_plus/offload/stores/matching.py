"""Bytes that lie on disk already need not be written again.

A range of a file stands for a tensor if, and only if, all its bytes are equal. Sizes and samples only help to find
candidates; the proof is the comparison.
"""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict

from .checkpoint_files import ranges_of
from .disk import Piece
from .mapped_file import MappedFile, named_error, same_bytes

__all__ = ["KnownRanges"]

SAMPLE = 64  # bytes at each end, by which candidates are found


class KnownRanges:
    """Ranges of files, each given out at most once: two tensors on one range of one mapping would share memory."""

    def __init__(self) -> None:
        self._by_sample: dict[tuple[int, bytes, bytes], list[Piece]] = defaultdict(list)

    def add(self, file: MappedFile) -> None:
        """Offer every tensor of the safetensors file ``file``.

        Raises:
            DiskTierError: it is not a whole safetensors file.
        """
        for found in ranges_of(file):
            with named_error("read", file.path):
                head = os.pread(file.fileno(), min(SAMPLE, found.nbytes), found.offset)
                tail = os.pread(file.fileno(), min(SAMPLE, found.nbytes), found.offset + max(0, found.nbytes - SAMPLE))
            self._by_sample[found.nbytes, head, tail].append(Piece(file, found.offset, found.nbytes))

    def take(self, address: int, nbytes: int) -> Piece | None:
        """A range whose bytes are those at ``address`` in memory, all compared; None if there is none left."""
        candidates = self._by_sample.get((nbytes, *_ends(address, nbytes)))
        for index, piece in enumerate(candidates or ()):
            if same_bytes(address, piece.file.address + piece.offset, nbytes):
                assert candidates is not None
                return candidates.pop(index)
        return None


def _ends(address: int, nbytes: int) -> tuple[bytes, bytes]:
    count = min(SAMPLE, nbytes)
    return ctypes.string_at(address, count), ctypes.string_at(address + nbytes - count, count)
