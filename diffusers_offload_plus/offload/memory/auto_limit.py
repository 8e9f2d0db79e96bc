"""``vram_budget="auto"``: the device memory there is, less what passes need beside weights.

[Note: measuring what passes need]
The first pass by each entry, and each with larger inputs than were seen there, runs with as few weights on the device
as it can, and what it takes beside them is measured. From the next pass on weights may have the rest, less a margin.
What others put on the device between passes comes off as well. Where a pass needs more after all, nothing raises here:
weights that are not in use make room as far as they can, the device says whether that was enough, and a pass that
failed is measured anew.
Measuring resets the device's own record of its peak (``torch.cuda.max_memory_allocated``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

__all__ = ["AutoLimit", "DeviceMemory", "tells_memory"]

MARGIN = 1.05  # of what a pass was seen to take
NEARLY = 0.95  # of a limit is as good
LARGEST_SLACK = 256 << 20  # bytes left for what the allocator cannot use
_CALLS = ("mem_get_info", "memory_allocated", "memory_reserved", "max_memory_allocated", "reset_peak_memory_stats")


def tells_memory(device: torch.device) -> bool:
    """Whether the device says what memory it has and how much of it is taken."""
    return device.type != "cpu" and all(hasattr(torch.get_device_module(device.type), name) for name in _CALLS)


class DeviceMemory:
    """What a device says of its memory, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device.type)

    def capacity(self) -> int:
        """What tensors of this process may take in all: what its allocator has, and what is free."""
        free, _ = self._module.mem_get_info(self._device)
        return int(free) + int(self._module.memory_reserved(self._device))

    def taken(self) -> int:
        """What tensors take now."""
        return int(self._module.memory_allocated(self._device))

    def peak(self) -> int:
        """The most they took since :meth:`restart`."""
        return int(self._module.max_memory_allocated(self._device))

    def restart(self) -> None:
        """Measure the peak from now on."""
        self._module.reset_peak_memory_stats(self._device)


@dataclasses.dataclass(slots=True)
class _PassRecord:
    """A pass under way.

    Attributes:
        entry: by which door of which model; ``size``: elements of its inputs.
        before: bytes beside weights when it began; ``most`` and ``lowest``: since.
    """

    entry: tuple[int, int]
    size: int | None
    limit: int
    measured: bool
    before: int = 0
    most: int = 0
    lowest: int = 0


@dataclasses.dataclass(slots=True)
class _Need:
    size: int
    nbytes: int


class AutoLimit:
    """The limit for each model, from what its passes were seen to need.

    Attributes:
        least: bytes of weights with which any pass runs: the limit while nothing is known. To be kept up to date.
        capacity: bytes that tensors may take in all, as of the last measurement.
        passes_measured: how often was measured.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self.least = 0
        self.capacity = memory.capacity()
        self.passes_measured = 0
        self._needs: dict[tuple[int, int], _Need] = {}
        self._records: list[_PassRecord] = []
        self._last: dict[int, int] = {}
        self._unsure: set[tuple[int, int]] = set()

    @property
    def measures(self) -> bool:
        """Whether a pass is being measured."""
        return any(record.measured for record in self._records)

    @property
    def slack(self) -> int:
        """Bytes that weights leave besides what passes need."""
        return min(LARGEST_SLACK, self.capacity // 50)

    def begin(self, member: int, entry: int, size: int | None, used: int) -> int:
        """A pass begins.

        Args:
            member: the model's engine; ``entry``: the module called.
            size: elements of its inputs; None: do not measure it.
            used: bytes that weights take now.

        Returns:
            The limit for it.
        """
        known = self._needs.get((member, entry))
        measured = size is not None and not torch.is_grad_enabled() and (known is None or size > known.size)
        limit = self.least if measured or torch.is_grad_enabled() else self._limit_of(member, used)
        self._records.append(_PassRecord((member, entry), size, limit, measured))
        return limit

    def started(self, used: int) -> None:
        """Weights that had to go to keep the limit are gone: what is measured is measured from here."""
        record = self._records[-1]
        if record.measured:
            self.note(used)
            self.capacity = self._memory.capacity()
            record.before = record.most = record.lowest = self._memory.taken() - used
            self._memory.restart()

    def note(self, used: int) -> None:
        """Weights, which have taken ``used`` bytes since the last note, take more or less from now on."""
        most, now = self._memory.peak() - used, self._memory.taken() - used
        for record in self._records:
            record.most = max(record.most, most)
            record.lowest = min(record.lowest, now)
        self._memory.restart()

    def restart(self) -> None:
        """Measure the peak from now on."""
        self._memory.restart()

    def end(self, finished: bool, used: int) -> int | None:
        """The pass that began last is over.

        Returns:
            The limit of the pass around it, None if there is none.
        """
        if self.measures:
            self.note(used)
        record = self._records.pop()
        if not finished:
            self._needs.pop(record.entry, None)
        elif record.measured:
            assert record.size is not None
            if record.lowest < record.before and record.entry not in self._unsure:
                # Something of before was freed meanwhile, and may have hidden what the pass took: once more.
                self._unsure.add(record.entry)
            else:
                self._unsure.discard(record.entry)
                self._needs[record.entry] = _Need(record.size, record.most - record.lowest)
                self.passes_measured += 1
        return self._records[-1].limit if self._records else None

    def forget(self, member: int) -> None:
        """A model is done."""
        self._needs = {entry: need for entry, need in self._needs.items() if entry[0] != member}
        self._last.pop(member, None)
        self._unsure = {entry for entry in self._unsure if entry[0] != member}

    def need_of(self, member: int) -> int | None:
        """Bytes beside weights that passes of a model were seen to take at most; None if none was measured."""
        return max((need.nbytes for (who, _), need in self._needs.items() if who == member), default=None)

    def _limit_of(self, member: int, used: int) -> int:
        need = self.need_of(member)
        if need is None:
            return self.least
        others = self._memory.taken() - used
        limit = max(self.least, self.capacity - others - int(MARGIN * need) - self.slack)
        # Small changes are not worth choosing anew what is kept.
        if not NEARLY * limit <= self._last.get(member, 0) <= limit:
            self._last[member] = limit
        return self._last[member]
