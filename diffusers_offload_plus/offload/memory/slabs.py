"""Slabs: pieces of device memory with the bytes of one group, and a pool of free slabs.

[Note: slabs]
The views that parameters point at are built once for a slab and stay valid as long as it exists. Between two uses its
memory is free. Without a budget the storage is resized to nothing, which gives the memory back to the allocator. With
a budget the slab waits in a pool. Either happens only if no other tensor has the memory: a module may have returned a
weight, or a view of one.

A slab from the pool has the events of its last readers. The next copy into it waits for those events alone, not for
all computing issued since. So copies can run several groups ahead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["DeviceSlab", "SlabPool"]


class DeviceSlab:
    """A piece of device memory.

    Attributes:
        bytes: the memory as a uint8 tensor of shape ``(nbytes,)``.
        storage: storage of ``bytes``. Resizing it to nothing gives the memory back to the allocator. Resizing it to
            ``nbytes`` allocates memory again, on the current stream. Views of it stay valid.
        streams: the streams that use the memory now, by their ids.
        owner: the stream that the memory was allocated on.
        retired: somebody outside of the engine holds its memory, so it is not used again.
        copied: the event at the end of the last copy into the slab.
        free: events after which the memory may be overwritten; None: it was just allocated on ``owner``.
    """

    __slots__ = (
        "_parts",
        "_references",
        "_uses",
        "bytes",
        "copied",
        "free",
        "nbytes",
        "owner",
        "retired",
        "storage",
        "streams",
    )

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.storage = self.bytes.untyped_storage()
        self.nbytes = nbytes
        self.retired = False
        self.streams: dict[int, Any] = {}
        self.owner: Any = None
        self.copied: Any = None if device.type == "cpu" else torch.Event(device)
        self.free: list[Any] | None = None
        self._parts: list[torch.Tensor] = []
        self._references: list[int] = []
        self._uses = torch._C._storage_Use_Count(self.storage._cdata)

    def note_views(self, parts: Sequence[torch.Tensor]) -> None:
        """Count the present references to the memory as our own.

        Call when views have been built and no parameter points at them yet.

        Args:
            parts: inner tensors of wrappers among the views. Parameters that point at a wrapper reference these.
        """
        self._parts.extend(parts)
        self._references = list(map(sys.getrefcount, self._parts))
        self._uses = torch._C._storage_Use_Count(self.storage._cdata)

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether other code has a reference to the memory, or to one of the inner tensors over it."""
        if torch._C._storage_Use_Count(self.storage._cdata) > self._uses:
            return True
        return bool(self._parts) and list(map(sys.getrefcount, self._parts)) != self._references


class SlabPool:
    """Free slabs by size.

    Attributes:
        nbytes: device bytes of all free slabs.
        reused: number of slabs that were taken from the pool.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[DeviceSlab]] = {}
        self.nbytes = 0
        self.reused = 0
        self.retired = 0

    def retire(self, slab: DeviceSlab) -> None:
        """Leave the memory of ``slab`` to whoever holds it. Groups drop their views of it, which would hold it too."""
        slab.retired = True
        self.retired += 1

    def has(self, nbytes: int) -> bool:
        """Whether there is a free slab of this size."""
        return nbytes in self._free

    def take(self, nbytes: int) -> DeviceSlab | None:
        """Take out the slab of this size that has been free longest; None if there is none."""
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
        """Add a slab that nothing issued from now on reads."""
        if slab.nbytes:
            slab.free = [stream.record_event() for stream in slab.streams.values()]
            slab.streams.clear()
            self._free.setdefault(slab.nbytes, []).append(slab)
            self.nbytes += slab.nbytes

    def trim(self, nbytes: int) -> None:
        """Give at least ``nbytes`` back to the allocator, or all. Sizes that have been free longest go first."""
        while nbytes > 0 and self._free:
            size = next(iter(self._free))
            slab = self.take(size)
            assert slab is not None
            if slab.bytes.device.type != "cpu":
                slab.storage.resize_(0)  # groups have views of it; on the CPU they have none, and it ends here
            self.reused -= 1
            nbytes -= size
