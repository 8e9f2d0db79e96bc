"""What the rest of the engine knows of stored weights, whatever the tier.

[Note: own storage]
Every stored tensor is a view over an ``UntypedStorage`` of its own (its slice of the memory or file), never over the
whole. Code that looks at storages then sees what it would see on a plain model: sharded ``save_pretrained`` writes the
same files, and ``torch.save`` or ``deepcopy`` of one parameter takes that parameter alone.
"""

from __future__ import annotations

import abc
import bisect
from collections.abc import Hashable, Sequence
from typing import Protocol

import torch

from .layout import Extent, SlabLayout, view_of

__all__ = ["Allocator", "WeightStorage"]


class WeightStorage(abc.ABC):
    """The stored tensors of one group, whose bytes can be packed into one run, as a transfer moves them.

    Attributes:
        tensors: real tensors with the right values, in the order of the sources; each has the dtype, size and strides
            of its source.
        layout: where the bytes of each tensor lie in the packed bytes.
        is_aligned: a CPU may compute with every tensor where it lies, and gets the bits it got from the sources.
    """

    is_aligned = True

    def __init__(
        self, sources: Sequence[torch.Tensor], layout: SlabLayout, slices: Sequence[torch.UntypedStorage]
    ) -> None:
        """Tensors like ``sources``, which ``layout`` was made for, over ``slices``: the bytes of each extent."""
        self.layout = layout
        self.tensors: list[torch.Tensor] = []
        # By address: what is put into a storage object by others (``share_memory()``) is not what is stored here.
        self._starts = [part.data_ptr() for part in slices]
        self._places = sorted(range(len(slices)), key=self._starts.__getitem__)
        self._starts.sort()
        host = torch.device("cpu")
        for source, index in zip(sources, layout.extent_of, strict=True):
            if index is None:
                empty = torch.empty_strided(source.size(), source.stride(), dtype=source.dtype, device=host)
                self.tensors.append(empty)
                continue
            extent = layout.extents[index]
            self.tensors.append(view_of(slices[index], source.data_ptr() - extent.start, source, host))

    @property
    def nbytes(self) -> int:
        """Bytes one transfer moves, alignment included."""
        return self.layout.nbytes

    @property
    @abc.abstractmethod
    def tier(self) -> str:
        """Where the weights are stored, as reports call it."""

    @property
    @abc.abstractmethod
    def in_memory(self) -> torch.Tensor | None:
        """The packed bytes as a uint8 tensor in host memory, ready to travel as one copy; None if they are not."""

    @property
    def private_bytes(self) -> int:
        """Bytes that this process has written since, and so has to itself, where weights are mapped."""
        return 0

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """Where in the packed bytes ``tensor`` begins; None if its memory is not of this storage.

        ``tensor`` may be any view. Its address decides, so a parameter that others re-pointed is found.
        """
        address = tensor.data_ptr()
        place = bisect.bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        extent, distance = self.layout.extents[self._places[place]], address - self._starts[place]
        return extent.offset + distance if distance < extent.nbytes else None

    def extent_at(self, offset: int) -> Extent:
        """The extent that the packed byte at ``offset`` belongs to."""
        return self.layout.extent_at(offset)

    @abc.abstractmethod
    def read_into(self, target: torch.Tensor, start: int = 0) -> None:
        """Fill ``target`` (uint8, on the CPU) with the packed bytes from ``start`` on."""

    @abc.abstractmethod
    def part(self, start: int, stop: int) -> torch.Tensor:
        """Some of the packed bytes as a uint8 tensor on the CPU; not to be written."""

    @abc.abstractmethod
    def write(self, start: int, values: torch.Tensor) -> None:
        """Replace the packed bytes from ``start`` on by ``values`` (uint8, on any device), within one extent."""


class Allocator(Protocol):
    """What stores weights on one tier."""

    def store(self, key: Hashable, sources: Sequence[torch.Tensor]) -> WeightStorage:
        """Store the values of ``sources`` (dense, on one device), a group that ``key`` names. Changes no source."""
