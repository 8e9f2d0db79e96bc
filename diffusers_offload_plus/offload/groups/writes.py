"""What was written to the device copy of a group, stored before the copy is dropped.

[Note: a write is copied, never lost]
Offloading points parameters back at their stored values and drops the device copy. Before it is dropped, three things
are looked at. A parameter that others pointed elsewhere is found by its address and layout. An in-place write is found
by a version counter. Where counters prove nothing (training, ``onloaded``, memory that others could write between two
passes), bytes are compared. Buffers are always copied back. Only what was written travels from device to host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...errors import FileChangedError
from ..memory.device_budget import DeviceBudget
from ..model.inventory import Entry
from ..model.pointers import Pointers
from ..model.tensors import alias, map_plain, plain_bytes, plain_tensors, repoint, same_bits
from ..modes import engine_mode
from ..stores.layout import view_of
from ..stores.storage import WeightStorage
from .comparisons import MOST_DEFERRED, Compare, Comparison, are_stored, finish_comparisons

__all__ = ["DeviceCopy", "Writes"]


class DeviceCopy(NamedTuple):
    """A group as it is on the device, and as it is stored.

    Attributes:
        entries: the tensors of the group.
        device: their values on the device; ``seen``: their versions when they were pointed there.
        stored: their stored values, in ``storage``.
        slab: the device copy as bytes, uint8 of shape ``(nbytes,)``.
    """

    entries: Sequence[Entry]
    device: Pointers
    seen: list[int]
    stored: Pointers
    storage: WeightStorage
    slab: torch.Tensor


class Writes:
    """Finds what was written on the device to the tensors of one group, and stores it.

    Attributes:
        nbytes: bytes that travelled from device to host because they were written, or may have been.
        comparisons: of what was trained, put off to the end of the pass.
    """

    def __init__(self, budget: DeviceBudget) -> None:
        self.nbytes = 0
        self.comparisons: list[Comparison] = []
        self._budget = budget

    def store(self, copy: DeviceCopy, compare: Compare) -> None:
        """Store what was written, and point every tensor of the group at the host.

        Args:
            compare: which bytes are compared; for the others version counters are trusted.
        """
        with engine_mode():
            try:
                adopted = self._store(copy, compare)
            except FileChangedError:
                adopted = _rescue(copy)
            for index, (entry, value) in enumerate(zip(copy.entries, copy.stored.values, strict=True)):
                if index not in adopted:
                    repoint(entry.tensor, value)

    def finish_comparisons(self) -> None:
        """Wait for comparisons that were put off; see [Note: one wait for all comparisons]."""
        with engine_mode():
            finish_comparisons(self.comparisons)
        self.comparisons.clear()

    def _store(self, copy: DeviceCopy, compare: Compare) -> set[int]:
        """Store what was written; returns the places of tensors that point at other values on the host now."""
        if compare is Compare.ALL:
            self._compare(copy, 0, copy.slab.numel())
        adopted, trained = set(), []
        written = copy.device.changed_since(copy.seen)
        for index, entry in enumerate(copy.entries):
            if not copy.device.points(index):
                if self._adopt(entry.tensor, copy.stored.values[index]):
                    adopted.add(index)
                continue
            for _, plain in plain_tensors(entry.tensor):
                if not plain.numel():
                    continue
                extent = copy.storage.extent_at(int(plain.storage_offset()) * plain.element_size())
                start, stop = extent.offset, extent.offset + extent.nbytes
                if entry.is_buffer or index in written:
                    self._copy_back(copy, start, stop)
                elif compare is Compare.TRAINED and entry.tensor.requires_grad:
                    trained.append((start, stop))
        self._compare_trained(copy, list(dict.fromkeys(trained)))
        return adopted

    def _compare_trained(self, copy: DeviceCopy, ranges: list[tuple[int, int]]) -> None:
        nbytes = sum(stop - start for start, stop in ranges)
        if 0 < nbytes <= MOST_DEFERRED and self._budget.limit is None:
            with contextlib.suppress(torch.OutOfMemoryError):
                self.comparisons.append(Comparison.begin(copy.slab, copy.storage, ranges, self._note))
                return
        for start, stop in ranges:
            self._compare(copy, start, stop)

    def _note(self, nbytes: int) -> None:
        self.nbytes += nbytes

    def _compare(self, copy: DeviceCopy, start: int, stop: int) -> None:
        piece = self._budget.scratch
        for first in range(start, stop, piece):
            last = min(first + piece, stop)
            if not are_stored(copy.slab[first:last], copy.storage, first):
                self._copy_back(copy, first, last)

    def _copy_back(self, copy: DeviceCopy, start: int, stop: int) -> None:
        for first, last in copy.storage.layout.pieces(start, stop):
            copy.storage.write(first, copy.slab[first:last])
            self.nbytes += last - first

    def _adopt(self, tensor: torch.Tensor, stored: torch.Tensor) -> bool:
        """Keep the values of a tensor that others gave new memory to, unless they are the old ones."""
        value = map_plain(alias(tensor), lambda t: t.to("cpu"))
        if same_bits(value, stored):
            return False
        self.nbytes += plain_bytes(value)
        repoint(tensor, value)
        return True


def _rescue(copy: DeviceCopy) -> set[int]:
    """Keep what the device still has of a file that was changed by others."""
    storage, host = copy.slab.cpu().untyped_storage(), torch.device("cpu")

    def on_host(plain: torch.Tensor) -> torch.Tensor:
        return view_of(storage, int(plain.storage_offset()) * plain.element_size(), plain, host)

    for index, entry in enumerate(copy.entries):
        if copy.device.points(index):
            repoint(entry.tensor, map_plain(alias(entry.tensor), on_host))
    return set(range(len(copy.entries)))
