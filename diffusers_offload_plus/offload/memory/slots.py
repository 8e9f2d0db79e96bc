"""Device memory that slabs have given back, kept for the next slab of the same size.

[Note: slots]
A slot is reused only when nobody else holds its memory (a module may have returned a weight, or a view of one), and
with the event after which nobody reads it: the next copy into it waits for that event alone, not for all that has
been computed meanwhile, which is what lets copies run several groups ahead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["Slot", "SlotPool", "held_alone"]


class Slot(NamedTuple):
    """Device memory, and the event after which it may be overwritten."""

    slab: torch.Tensor
    free: Any = None


def _holders(slab: torch.Tensor) -> int:
    return torch._C._storage_Use_Count(slab.untyped_storage()._cdata)


_ALONE = _holders(torch.empty(1))


def held_alone(slab: torch.Tensor) -> bool:
    """Whether no other tensor is over the memory of ``slab``."""
    return _holders(slab) <= _ALONE


class SlotPool:
    """Free slots by size.

    Attributes:
        nbytes: device bytes of all of them.
        reused: how often one was taken again.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Slot]] = {}
        self.nbytes = 0
        self.reused = 0

    def has(self, nbytes: int) -> bool:
        """Whether there is a slot of this size."""
        return nbytes in self._free

    def take(self, nbytes: int) -> Slot | None:
        """The slot of this size that has been free longest, if there is one."""
        slots = self._free.get(nbytes)
        if slots is None:
            return None
        slot = slots.pop(0)
        if not slots:
            del self._free[nbytes]
        self.nbytes -= nbytes
        self.reused += 1
        return slot

    def give(self, slot: Slot) -> None:
        """Keep a slot for later."""
        nbytes = slot.slab.numel()
        if nbytes:
            self._free.setdefault(nbytes, []).append(slot)
            self.nbytes += nbytes

    def trim(self, nbytes: int) -> None:
        """Give at least ``nbytes`` back to the allocator, or all there is; the sizes free longest go first."""
        while nbytes > 0 and self._free:
            size = next(iter(self._free))
            self.take(size)
            self.reused -= 1
            nbytes -= size
