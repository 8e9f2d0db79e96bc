"""Weights at rest on disk: views of mapped files, with an ``UntypedStorage`` each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from ..layout import Extent, SlabLayout, view_of
from ..mapped_file import MappedFile
from ..page_cache import PAGE

__all__ = ["DiskSlab", "Piece"]

# CPU kernels give other last bits on weights that are aligned to fewer bytes than the first; none tells apart two
# addresses that agree modulo the second.
COMPUTE_ALIGNMENT, VECTOR = 16, 64


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Where on disk the bytes of one extent are."""

    file: MappedFile
    offset: int
    nbytes: int

    def computes_like(self, address: int) -> bool:
        """Whether computing straight from the mapping gives the bits that computing with the same bytes at ``address``
        in memory gives."""
        return self.offset % COMPUTE_ALIGNMENT == 0 or self.offset % VECTOR == address % VECTOR


class DiskSlab:
    """Tensors that are views of mapped files.

    Attributes:
        tensors: the views, in the order of the sources; writing one leaves the files alone.
        pieces: where each extent of :attr:`layout` lies on disk.
        is_aligned: a CPU may compute with every tensor where it lies, and gets the bits it got from the sources.
    """

    in_memory: torch.Tensor | None = None
    tier = "disk"

    def __init__(self, sources: Sequence[torch.Tensor], layout: SlabLayout, pieces: Sequence[Piece]) -> None:
        """Views for ``sources``, whose extents ``layout`` gives and whose bytes ``pieces`` hold, extent by extent."""
        self.layout = layout
        self.pieces = tuple(pieces)
        self.is_aligned = all(
            piece.computes_like(extent.start) for extent, piece in zip(layout.extents, self.pieces, strict=True)
        )
        self._ranges = _joined(self.pieces)
        host = torch.device("cpu")
        slices = [piece.file.storage(piece.offset, piece.nbytes) for piece in self.pieces]
        self.tensors: list[torch.Tensor] = []
        self._offsets: dict[int, int] = {}
        for source, index in zip(sources, layout.extent_of, strict=True):
            if index is None:
                self.tensors.append(torch.empty_strided(source.size(), source.stride(), dtype=source.dtype))
                continue
            extent = layout.extents[index]
            self.tensors.append(view_of(slices[index], source.data_ptr() - extent.start, source, host))
            self._offsets[slices[index]._cdata] = extent.offset

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensors, alignment included."""
        return self.layout.nbytes

    @property
    def private_bytes(self) -> int:
        """Bytes of extents that were written since, and so are in memory of the process."""
        return sum(piece.nbytes for piece in self.pieces if piece.file.is_private(piece.offset, piece.nbytes))

    def files(self) -> list[MappedFile]:
        """The files its bytes are in."""
        return list(dict.fromkeys(piece.file for piece in self.pieces))

    def check(self) -> None:
        """Raise :class:`.FileChangedError` if a file was changed in place since it was mapped."""
        for file in self.files():
            file.check()

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """As :meth:`.HostSlab.offset_of`."""
        base = self._offsets.get(tensor.untyped_storage()._cdata)
        return None if base is None else base + int(tensor.storage_offset()) * tensor.element_size()

    def extent_at(self, offset: int) -> Extent:
        """As :meth:`.HostSlab.extent_at`."""
        return self.layout.extent_at(offset)

    def read_into(self, target: torch.Tensor, start: int = 0) -> None:
        """Fill ``target`` with the packed bytes from ``start`` on: straight from the files, but from the mapping what
        was written."""
        self.check()
        end, stop = start, start + target.numel()
        for begin, piece in self._runs():
            first, last = max(begin, start), min(begin + piece.nbytes, stop)
            if first >= last:
                continue
            target[end - start : first - start].zero_()  # gaps have values, so that packed bytes can be compared
            end = last
            part, offset = target[first - start : last - start], piece.offset + first - begin
            if piece.file.is_private(offset, last - first):
                piece.file.copy_into(part, offset)
            else:
                piece.file.read_into(part, offset)
        target[end - start :].zero_()
        self.check()  # changed while it was read: half old, half new

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Some of the packed bytes, through the mapping; gaps between extents read as zeros."""
        result = torch.zeros(stop - start, dtype=torch.uint8)
        for extent, piece in zip(self.layout.extents, self.pieces, strict=True):
            begin, end = max(start, extent.offset), min(stop, extent.offset + extent.nbytes)
            if begin < end:
                piece.file.check()
                piece.file.copy_into(result[begin - start : end - start], piece.offset + begin - extent.offset)
        return result

    def write(self, start: int, values: torch.Tensor) -> None:
        """Overwrite bytes of one extent, in memory of the process; the file stays as it is."""
        extent = self.extent_at(start)
        piece = self.pieces[self.layout.extents.index(extent)]
        piece.file.bytes(piece.offset + start - extent.offset, values.numel()).copy_(values)

    def populate(self) -> None:
        """Bring all of it into memory, to be computed with where it lies."""
        self.check()
        for piece in self._ranges:
            piece.file.populate(piece.offset, piece.nbytes)

    def release(self) -> None:
        """Tell the system that it will not be used soon."""
        for piece in self._ranges:
            piece.file.release(piece.offset, piece.nbytes)

    def _runs(self) -> Iterator[tuple[int, Piece]]:
        # Extents that follow one another on disk as they do in the slab are read as one.
        run: Piece | None = None
        begin = 0
        for extent, piece in zip(self.layout.extents, self.pieces, strict=True):
            distance = extent.offset - begin
            if run is not None and piece.file is run.file and piece.offset - run.offset == distance:
                run = Piece(run.file, run.offset, distance + piece.nbytes)
                continue
            if run is not None:
                yield begin, run
            run, begin = piece, extent.offset
        if run is not None:
            yield begin, run


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same bytes in as few ranges as possible: what lies between two of them takes no page of its own."""
    found: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (id(piece.file), piece.offset)):
        last = found[-1] if found else None
        if last is not None and last.file is piece.file and piece.offset < last.offset + last.nbytes + PAGE:
            end = max(last.offset + last.nbytes, piece.offset + piece.nbytes)
            found[-1] = Piece(last.file, last.offset, end - last.offset)
        else:
            found.append(piece)
    return found
