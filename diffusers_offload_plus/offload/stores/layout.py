"""Where each tensor's bytes lie in a packed slab: a pure function of addresses.

Tensors whose bytes overlap in memory (ties, views of one base) form one *extent* and keep overlapping in the slab.
Extents are aligned so that kernels see the alignment they would see on tensors allocated alone.
"""

from __future__ import annotations

import bisect
import ctypes
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from ...errors import UnsupportedModelError

__all__ = ["ALIGNMENT", "Extent", "SlabLayout", "address_range", "bytes_at", "cluster", "lay_out", "view_of"]

ALIGNMENT = 512
"""Bytes: what torch's CUDA allocator gives every tensor. cuBLASLt picks kernels by the alignment of pointers (up to
256 bytes), and other kernels round differently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extent:
    """A run of bytes that one tensor occupies, or several that overlap.

    Attributes:
        start: first address in the memory of the sources.
        nbytes: length in bytes.
        offset: where it begins in the slab, in bytes.
    """

    start: int
    nbytes: int
    offset: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlabLayout:
    """The extents of one slab and which extent each tensor belongs to (``None``: it has no bytes)."""

    extents: tuple[Extent, ...]
    extent_of: tuple[int | None, ...]
    nbytes: int

    def extent_at(self, offset: int) -> Extent:
        """The extent that the byte at ``offset`` of the slab belongs to."""
        return self.extents[self._place(offset)]

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of a range of the slab that lie in extents, each within one; what is between extents is left
        out."""
        for extent in itertools.islice(self.extents, max(0, self._place(start)), None):
            if extent.offset >= stop:
                return
            first, last = max(start, extent.offset), min(stop, extent.offset + extent.nbytes)
            if first < last:
                yield first, last

    def _place(self, offset: int) -> int:
        return bisect.bisect_right(self.extents, offset, key=lambda extent: extent.offset) - 1


def view_of(storage: torch.UntypedStorage, byte_offset: int, like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor over ``storage`` with the dtype, size and strides of ``like``, its first element at ``byte_offset``."""
    view = torch.empty(0, dtype=like.dtype, device=device)
    return view.set_(storage, byte_offset // like.element_size(), like.size(), like.stride())


def bytes_at(address: int, nbytes: int) -> torch.Tensor:
    """The memory at ``address`` as a uint8 tensor on the CPU; it does not keep that memory alive."""
    return torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=torch.uint8)


def address_range(tensor: torch.Tensor) -> tuple[int, int]:
    """The half-open range of addresses a dense tensor may touch; empty for a tensor without elements."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def cluster(ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of ``ranges``, grouped so that two overlapping ranges share a group. Empty ranges are left out."""
    groups: list[list[int]] = []
    end = 0
    for index in sorted((i for i, (a, b) in enumerate(ranges) if a < b), key=lambda i: ranges[i]):
        start, stop = ranges[index]
        if groups and start < end:
            groups[-1].append(index)
        else:
            groups.append([index])
        end = max(end, stop) if groups[-1][0] != index else stop
    return groups


def lay_out(tensors: Iterable[torch.Tensor]) -> SlabLayout:
    """Lay the bytes of ``tensors`` (dense, all on one device) out in one slab, in the order given."""
    items = list(tensors)
    ranges = [address_range(tensor) for tensor in items]
    extent_of: list[int | None] = [None] * len(items)
    extents: list[Extent] = []
    offset = 0
    for members in sorted(cluster(ranges), key=min):
        start = _common_base(ranges, members, [items[i].element_size() for i in members])
        nbytes = max(ranges[i][1] for i in members) - start
        for i in members:
            extent_of[i] = len(extents)
        extents.append(Extent(start=start, nbytes=nbytes, offset=offset))
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return SlabLayout(extents=tuple(extents), extent_of=tuple(extent_of), nbytes=offset)


def _common_base(ranges: Sequence[tuple[int, int]], members: Sequence[int], itemsizes: Sequence[int]) -> int:
    # set_() counts offsets in elements, so every member must lie a whole number of its elements after the base.
    lowest = min(ranges[i][0] for i in members)
    for back in range(16):
        if all((ranges[i][0] - lowest + back) % size == 0 for i, size in zip(members, itemsizes, strict=True)):
            return lowest - back
    raise UnsupportedModelError(
        "Tensors that share memory with offsets that are no multiple of their element size cannot be offloaded. "
        "Clone one of them first."
    )
