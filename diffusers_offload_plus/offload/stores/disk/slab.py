"""Weights stored on disk: views of mapped files."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..layout import SlabLayout
from ..mapped_file import FileRange, MappedFile, private_bytes
from ..page_cache import PAGE
from ..storage import WeightStorage

__all__ = ["DiskSlab"]

# CPU kernels may give other last bits on a weight that is aligned to less than the first number of bytes. They give
# the same bits at two addresses that are equal modulo the second.
COMPUTE_ALIGNMENT, VECTOR = 16, 64


class DiskSlab(WeightStorage):
    """Tensors that are views of mapped files. Writing one leaves the files alone.

    Attributes:
        ranges: where each extent of :attr:`layout` lies on disk.
    """

    in_memory: torch.Tensor | None = None
    tier = "disk"

    def __init__(self, sources: Sequence[torch.Tensor], layout: SlabLayout, ranges: Sequence[FileRange]) -> None:
        """Views like ``sources``, whose extents ``layout`` gives and whose bytes lie in ``ranges``, extent by
        extent."""
        super().__init__(sources, layout, [file.storage(offset, nbytes) for file, offset, nbytes in ranges])
        self.ranges = tuple(ranges)
        self.is_aligned = all(
            place.offset % COMPUTE_ALIGNMENT == 0 or place.offset % VECTOR == extent.start % VECTOR
            for extent, place in zip(layout.extents, self.ranges, strict=True)
        )
        self._joined = _joined(self.ranges)

    @property
    def private_bytes(self) -> int:
        """Bytes of extents that this process has written since, and so holds in memory of its own."""
        return private_bytes(self.ranges)

    def files(self) -> list[MappedFile]:
        """The files that hold the bytes."""
        return list(dict.fromkeys(place.file for place in self.ranges))

    def check(self) -> None:
        """Raise :class:`.FileChangedError` if a file was changed in place since it was mapped."""
        for file in self.files():
            file.check()

    def read_into(self, target: torch.Tensor, start: int = 0) -> None:
        """Fill ``target`` with the packed bytes from ``start`` on. Gaps between extents become zeros, so that packed
        bytes can be compared. See [Note: the mapping is the truth]."""
        self.check()
        filled, stop = start, start + target.numel()
        for extent, (file, offset, _) in zip(self.layout.extents, self.ranges, strict=True):
            first, last = max(extent.offset, start), min(extent.offset + extent.nbytes, stop)
            if first >= last:
                continue
            target[filled - start : first - start].zero_()
            filled = last
            where, piece = offset + first - extent.offset, target[first - start : last - start]
            read = file.copy_into if file.is_private(where, last - first) else file.read_into
            read(piece, where)
        target[filled - start :].zero_()
        self.check()  # changed while it was read: half old, half new

    def part(self, start: int, stop: int) -> torch.Tensor:
        """A copy of some of the packed bytes."""
        result = torch.empty(stop - start, dtype=torch.uint8, device="cpu")
        self.read_into(result, start)
        return result

    def write(self, start: int, values: torch.Tensor) -> None:
        """Overwrite bytes of one extent in memory of the process; the file stays as it is."""
        extent = self.extent_at(start)
        file, offset, _ = self.ranges[self.layout.extents.index(extent)]
        file.bytes(offset + start - extent.offset, values.numel()).copy_(values)

    def populate(self) -> None:
        """Bring all bytes into memory, to be computed with where they lie."""
        self.check()
        for file, offset, nbytes in self._joined:
            file.populate(offset, nbytes)

    def release(self) -> None:
        """Tell the system that the bytes will not be used soon."""
        for file, offset, nbytes in self._joined:
            file.release(offset, nbytes)


def _joined(ranges: Sequence[FileRange]) -> list[FileRange]:
    """The same bytes in as few ranges as possible: less than a page between two of them takes no page of its own."""
    found: list[FileRange] = []
    for place in sorted(ranges, key=lambda place: (id(place.file), place.offset)):
        last = found[-1] if found else None
        if last is not None and last.file is place.file and place.offset < last.offset + last.nbytes + PAGE:
            end = max(last.offset + last.nbytes, place.offset + place.nbytes)
            found[-1] = last._replace(nbytes=end - last.offset)
        else:
            found.append(place)
    return found
