"""Device memory that holds the bytes of a group, and memory that is kept for the next group of the same size.

[Note: slabs]
The tensors that parameters point at on the device are built once for a slab and stay valid for as long as it exists:
without a budget its memory is given back between two uses by resizing its storage to nothing, with a budget the slab
waits in a pool. Either happens only when nobody else holds the memory (a module may have returned a weight, or a view
of one). A slab from the pool carries the events after which nobody reads it any more. The next copy into it waits for
those alone, not for all that has been computed meanwhile, which lets copies run several groups ahead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["DeviceSlab", "SlabPool"]


class DeviceSlab:
    """Some bytes of device memory.

    Attributes:
        bytes: the memory as a uint8 tensor of shape ``(nbytes,)``.
        storage: its storage. Resized to nothing it gives the memory back to the allocator; resized to ``nbytes`` it
            takes memory again, on the current stream. Views stay.
        streams: by their ids, the streams that use the memory now.
        owner: the stream that took the memory.
        copied: the event after which it holds what was last copied to it.
        free: events after which the memory may be overwritten; None: it is fresh on the stream that took it.
    """

    __slots__ = ("_held", "_parts", "_references", "bytes", "copied", "free", "nbytes", "owner", "storage", "streams")

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.storage = self.bytes.untyped_storage()
        self.nbytes = nbytes
        self.streams: dict[int, Any] = {}
        self.owner: Any = None
        self.copied: Any = None if device.type == "cpu" else torch.Event(device)
        self.free: list[Any] | None = None
        self._parts: list[torch.Tensor] = []
        self._references: list[int] = []
        self._held = torch._C._storage_Use_Count(self.storage._cdata)

    def note_views(self, parts: Sequence[torch.Tensor]) -> None:
        """Take present references to the memory for our own: views of it have just been built, and no parameter points
        at them yet. ``parts`` are inner tensors, which parameters hold as objects when they do."""
        self._parts.extend(parts)
        self._references = list(map(sys.getrefcount, self._parts))
        self._held = torch._C._storage_Use_Count(self.storage._cdata)

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether somebody besides us holds the memory, or one of the inner tensors over it."""
        if torch._C._storage_Use_Count(self.storage._cdata) > self._held:
            return True
        return bool(self._parts) and list(map(sys.getrefcount, self._parts)) != self._references


class SlabPool:
    """Free slabs by size.

    Attributes:
        nbytes: device bytes of all of them.
        reused: how often one was taken again.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[DeviceSlab]] = {}
        self.nbytes = 0
        self.reused = 0

    def has(self, nbytes: int) -> bool:
        """Whether there is a slab of this size."""
        return nbytes in self._free

    def take(self, nbytes: int) -> DeviceSlab | None:
        """The slab of this size that has been free longest, if there is one."""
        slabs = self._free.get(nbytes)
        if slabs is None:
            return None
        slab = slabs.pop(0)
        if not slabs:
            del self._free[nbytes]
        self.nbytes -= nbytes
        self.reused += 1
        return slab

    def give(self, slab: DeviceSlab) -> None:
        """Keep a slab for later; nothing issued from now on reads it."""
        if slab.nbytes:
            slab.free = [stream.record_event() for stream in slab.streams.values()]
            slab.streams.clear()
            self._free.setdefault(slab.nbytes, []).append(slab)
            self.nbytes += slab.nbytes

    def trim(self, nbytes: int) -> None:
        """Give at least ``nbytes`` back to the allocator, or all there is; the sizes free longest go first."""
        while nbytes > 0 and self._free:
            size = next(iter(self._free))
            slab = self.take(size)
            assert slab is not None
            if slab.bytes.device.type != "cpu":
                slab.storage.resize_(0)  # where groups remember their views; elsewhere nobody else has it
            self.reused -= 1
            nbytes -= size
