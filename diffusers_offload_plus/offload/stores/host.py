"""Weights stored in host memory: one exactly sized allocation a group."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

from ..memory.staging import pageable
from .layout import SlabLayout, address_range, lay_out
from .mapped_file import check_mapped
from .storage import WeightStorage

__all__ = ["Allocate", "HostAllocator", "HostSlab", "in_host_memory", "pack"]

Allocate = Callable[[int], torch.Tensor]


class HostSlab(WeightStorage):
    """Tensors packed into one piece of host memory.

    Attributes:
        bytes: the packed bytes as a one-dimensional uint8 tensor.
    """

    def __init__(self, sources: Sequence[torch.Tensor], layout: SlabLayout, packed: torch.Tensor) -> None:
        """Tensors like ``sources`` over ``packed`` (uint8, the whole of its storage), where ``layout`` puts them."""
        whole = packed.untyped_storage()
        super().__init__(sources, layout, [whole[e.offset : e.offset + e.nbytes] for e in layout.extents])
        self.bytes = packed

    @property
    def in_memory(self) -> torch.Tensor:
        """The packed bytes, ready to travel as one copy."""
        return self.bytes

    @property
    def tier(self) -> str:
        """Where the weights are stored, as reports call it."""
        return "pinned host" if self.nbytes and self.bytes.is_pinned() else "host"

    def read_into(self, target: torch.Tensor, start: int = 0) -> None:
        """Copy the packed bytes from ``start`` on to ``target``."""
        target.copy_(self.part(start, start + target.numel()))

    def part(self, start: int, stop: int) -> torch.Tensor:
        """A view of some of the packed bytes."""
        return self.bytes[start:stop]

    def write(self, start: int, values: torch.Tensor) -> None:
        """Overwrite the packed bytes from ``start`` on."""
        self.part(start, start + values.numel()).copy_(values)


class HostAllocator:
    """Stores weights in host memory of the process."""

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate

    def store(self, key: Hashable, sources: Sequence[torch.Tensor]) -> HostSlab:
        """A slab with copies of ``sources``."""
        return pack(sources, self._allocate)


def pack(sources: Sequence[torch.Tensor], allocate: Allocate) -> HostSlab:
    """Copy ``sources`` (dense, on any one device) into a slab from ``allocate(nbytes)``.

    Raises:
        FileChangedError: they are mapped from a file that was changed in place.
    """
    check_mapped(sources)
    layout = lay_out(sources)
    slab = HostSlab(sources, layout, allocate(layout.nbytes))
    for source, stored in zip(sources, slab.tensors, strict=True):
        if source.numel():
            _bytes_of(stored).copy_(_bytes_of(source))
    return slab


def in_host_memory(sources: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], SlabLayout]:
    """``sources``, or copies of them if they are on a device, and the layout of their bytes. Keep the tensors for as
    long as the addresses in the layout are used.

    Raises:
        FileChangedError: they are mapped from a file that was changed in place.
    """
    if any(t.device.type != "cpu" for t in sources):
        sources = pack(sources, pageable).tensors
    check_mapped(sources)
    return sources, lay_out(sources)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    # All bytes from the first element to the last: values, gaps between strided elements and NaN payloads alike.
    start, stop = address_range(tensor)
    view = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return view.set_(tensor.untyped_storage(), tensor.storage_offset() * tensor.element_size(), (stop - start,), (1,))
