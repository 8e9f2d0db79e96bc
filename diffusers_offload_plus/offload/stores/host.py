"""Weights at rest in host memory: one exactly sized allocation a group.

[Note: own storage]
Every tensor of a slab is a view over an ``UntypedStorage`` of its own (its slice of the slab), never over the slab
as a whole. Code that looks at storages then sees what it saw before: sharded ``save_pretrained`` writes the same
files, and ``torch.save`` or ``deepcopy`` of one parameter takes that parameter alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

from .layout import Extent, SlabLayout, lay_out, view_of
from .mapped_file import check_mapped

__all__ = ["Allocate", "HostAllocator", "HostSlab", "Slab"]

Allocate = Callable[[int], torch.Tensor]


class Slab:
    """Tensors packed into one piece of host memory.

    Attributes:
        bytes: the packed bytes as a one-dimensional uint8 tensor.
        tensors: the host tensors, in the order given; each has the dtype, size and strides of its source.
    """

    is_aligned = True  # a CPU may compute with the tensors where they lie

    def __init__(self, sources: Sequence[torch.Tensor], layout: SlabLayout, packed: torch.Tensor) -> None:
        """Tensors like ``sources`` over ``packed`` (uint8, the whole of its storage), where ``layout`` puts them."""
        self.layout = layout
        self.bytes = packed
        whole = packed.untyped_storage()
        host = torch.device("cpu")
        slices = [whole[extent.offset : extent.offset + extent.nbytes] for extent in layout.extents]
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
        """Bytes of host memory the slab takes, alignment included."""
        return self.layout.nbytes

    @property
    def in_memory(self) -> torch.Tensor:
        """The packed bytes, ready to travel as one copy."""
        return self.bytes

    @property
    def tier(self) -> str:
        """Where they rest, as reports call it."""
        return "pinned host" if self.nbytes and self.bytes.is_pinned() else "host"

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """Where in the slab the first byte of ``tensor`` lies, or ``None`` if its memory is not of this slab.

        ``tensor`` may be any view: what decides is whose storage it is on, so a tensor re-pointed by others is found.
        """
        base = self._offsets.get(tensor.untyped_storage()._cdata)
        return None if base is None else base + int(tensor.storage_offset()) * tensor.element_size()

    def extent_at(self, offset: int) -> Extent:
        """The extent that the byte at ``offset`` of the slab belongs to."""
        return self.layout.extent_at(offset)

    def read_into(self, target: torch.Tensor, start: int = 0) -> None:
        """Copy bytes of the slab to ``target``."""
        target.copy_(self.part(start, start + target.numel()))

    def part(self, start: int, stop: int) -> torch.Tensor:
        """A view of some bytes of the slab."""
        return self.bytes[start:stop]

    def write(self, start: int, values: torch.Tensor) -> None:
        """Overwrite bytes of the slab."""
        self.bytes[start : start + values.numel()].copy_(values)


class HostSlab(Slab):
    """A packed copy of some tensors in host memory of its own."""

    def __init__(self, sources: Sequence[torch.Tensor], allocate: Allocate) -> None:
        """Copy ``sources`` (dense, on any one device) into a slab from ``allocate(nbytes)``.

        Raises:
            FileChangedError: they are mapped from a file that was changed in place.
        """
        check_mapped(sources)
        layout = lay_out(sources)
        super().__init__(sources, layout, allocate(layout.nbytes))
        for source, home in zip(sources, self.tensors, strict=True):
            if source.numel():
                _copy_bytes(source, home)


class HostAllocator:
    """Homes in host memory."""

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate

    def place(self, key: Hashable, sources: Sequence[torch.Tensor]) -> HostSlab:
        """A slab with copies of ``sources``."""
        return HostSlab(sources, self._allocate)


def _copy_bytes(source: torch.Tensor, home: torch.Tensor) -> None:
    # Byte for byte over the whole range: values, gaps between strided elements and NaN payloads alike.
    offset = source.storage_offset() * source.element_size()
    last = sum((size - 1) * stride for size, stride in zip(source.size(), source.stride(), strict=True))
    nbytes = (last + 1) * source.element_size()
    raw = torch.empty(0, dtype=torch.uint8, device=source.device).set_(
        source.untyped_storage(), offset, (nbytes,), (1,)
    )
    start = home.storage_offset() * home.element_size()
    torch.empty(0, dtype=torch.uint8).set_(home.untyped_storage(), start, (nbytes,), (1,)).copy_(raw)
