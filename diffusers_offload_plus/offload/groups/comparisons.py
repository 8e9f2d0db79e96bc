"""Comparing what was trained with its stored values, at the end of a pass instead of group by group.

[Note: one wait for all comparisons]
Asking a device whether two tensors are equal makes the calling thread wait. An adapter has a few small tensors in each
group, and one wait a group would cost more than all copies. So the trained bytes of a group, which are few, are set
aside on the device when the group is offloaded, and all answers are read together when the pass ends, or before one
of the groups is used again.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence

import torch

from ...errors import FileChangedError
from ..stores.storage import WeightStorage

__all__ = ["MOST_DEFERRED", "Compare", "Comparison", "are_stored", "finish_comparisons"]

MOST_DEFERRED = 1 << 20  # bytes of one group; more are compared at once


class Compare(enum.Enum):
    """Which tensors of a group may have been written on the device without a trace."""

    NONE = "none"
    TRAINED = "those that require a gradient"
    ALL = "all"


@dataclasses.dataclass(eq=False, kw_only=True)
class Comparison:
    """Some ranges of a group's bytes as they were on the device.

    Attributes:
        ranges: first and last byte of each, in the storage.
        on_device: all their bytes, one range after the other.
        differs: on the device, whether they are others than the stored ones.
        note_written: told how many bytes were written back.
    """

    storage: WeightStorage
    ranges: Sequence[tuple[int, int]]
    on_device: torch.Tensor
    differs: torch.Tensor
    note_written: Callable[[int], None]

    @classmethod
    def begin(
        cls,
        slab: torch.Tensor,
        storage: WeightStorage,
        ranges: Sequence[tuple[int, int]],
        note_written: Callable[[int], None],
    ) -> Comparison:
        """Set the ranges of ``slab`` aside and start to compare them; no thread waits if the storage is pinned."""
        on_device = torch.cat([slab[start:stop] for start, stop in ranges])
        parts = [storage.part(start, stop) for start, stop in ranges]
        if not parts[0].is_pinned():
            parts = [torch.cat(parts)]  # each copy makes the thread wait: one for all
        stored = [part.to(slab.device, non_blocking=True) for part in parts]
        differs = (on_device != torch.cat(stored)).any()
        return cls(storage=storage, ranges=ranges, on_device=on_device, differs=differs, note_written=note_written)

    def write_back(self) -> None:
        """Store the bytes that were set aside."""
        done = 0
        for start, stop in self.ranges:
            self.storage.write(start, self.on_device[done : done + stop - start])
            done += stop - start
        self.note_written(done)


def are_stored(on_device: torch.Tensor, storage: WeightStorage, start: int) -> bool:
    """Whether bytes of a device copy are those stored from ``start`` on. If there is no memory to compare them in, or
    what is stored cannot be read, the answer is no: they are stored anew then, which is always right.

    Raises:
        FileChangedError: what is stored was changed by others.
    """
    try:
        return torch.equal(on_device, storage.part(start, start + on_device.numel()).to(on_device.device))
    except FileChangedError:
        raise
    except (RuntimeError, MemoryError, OSError):
        return False


def finish_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Wait for all answers at once, and store what differs."""
    if not comparisons:
        return
    try:
        answers = torch.stack([comparison.differs for comparison in comparisons]).tolist()
    except torch.OutOfMemoryError:
        answers = [comparison.differs.item() for comparison in comparisons]
    for comparison, differs in zip(comparisons, answers, strict=True):
        if differs:
            comparison.write_back()
