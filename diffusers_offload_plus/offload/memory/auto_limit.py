"""``vram_budget="auto"``: a limit for weights, measured from what passes take of the device besides weights.

[Note: measuring what passes need]
A pass is measured if its called module has not been measured, or not with inputs of that size. It runs with as few
weights on the device as possible, and the most memory that it takes besides them is recorded. From the next pass on
the limit for weights is the device's memory less that, less a margin, and less what other code has put on the device.
What other programs have taken is looked at before each pass. If they took more, weights are evicted, and the
allocator's free memory is given back to the device.
If a pass needs more than was measured, nothing raises here: weights that are not in use are evicted, and if that is
not enough the device raises. A pass that raised is measured anew.

Measuring resets the device's own record of its peak (``torch.cuda.max_memory_allocated``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

__all__ = ["AutoLimit", "DeviceMemory", "tells_memory"]

MARGIN = 1.05  # times what a measured pass took
NEARLY = 0.95  # a present limit of at least this part of the new one stays
LARGEST_SLACK = 256 << 20  # bytes that neither weights nor passes get, for the allocator's fragmentation
_CALLS = ("mem_get_info", "memory_allocated", "memory_reserved", "max_memory_allocated", "reset_peak_memory_stats")


def tells_memory(device: torch.device) -> bool:
    """Whether the device tells how much memory it has and how much of it is taken."""
    return device.type != "cpu" and all(hasattr(torch.get_device_module(device.type), name) for name in _CALLS)


class DeviceMemory:
    """The memory figures that a device tells, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device.type)

    def capacity(self) -> int:
        """Most bytes that tensors of this process can take: the allocator's memory, and what is free."""
        free, _ = self._module.mem_get_info(self._device)
        return int(free) + int(self._module.memory_reserved(self._device))

    def taken(self) -> int:
        """Bytes of tensors on the device now."""
        return int(self._module.memory_allocated(self._device))

    def peak(self) -> int:
        """Most bytes of tensors on the device since :meth:`restart`."""
        return int(self._module.max_memory_allocated(self._device))

    def restart(self) -> None:
        """Measure the peak from now on."""
        self._module.reset_peak_memory_stats(self._device)

    def give_back(self) -> None:
        """Return the allocator's free memory to the device, for other programs."""
        if hasattr(self._module, "empty_cache"):
            self._module.empty_cache()


@dataclasses.dataclass(slots=True)
class _PassRecord:
    """A pass under way.

    Attributes:
        called: the engine and the called module, by their ids.
        size: elements of the inputs; None: not known, so the pass is not measured.
        limit: bytes of weights on the device at most.
        before: bytes besides weights when the pass began; ``most`` and ``lowest``: the extremes since then.
    """

    called: tuple[int, int]
    size: int | None
    limit: int
    measured: bool
    before: int = 0
    most: int = 0
    lowest: int = 0


@dataclasses.dataclass(slots=True)
class _Need:
    """Most bytes besides weights that a pass with inputs of ``size`` elements took."""

    size: int
    nbytes: int


class AutoLimit:
    """The limit for the weights of each model, from measurements of its passes.

    Attributes:
        least: bytes of weights with which any pass can run: the limit of passes that are measured. The owner updates
            it.
        capacity: most bytes that tensors can take on the device, as of the last measurement.
        passes_measured: number of measured passes.
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
        self._shrank = False

    @property
    def measures(self) -> bool:
        """Whether a pass under way is measured."""
        return any(record.measured for record in self._records)

    @property
    def slack(self) -> int:
        """Bytes that neither weights nor passes get."""
        return min(LARGEST_SLACK, self.capacity // 50)

    def begin(self, member: int, called: int, size: int | None, used: int) -> int:
        """Begin a pass.

        Args:
            member: id of the model's engine; ``called``: id of the called module.
            size: elements of the inputs; None: do not measure the pass.
            used: bytes that weights take now.

        Returns:
            The limit for the pass.
        """
        self._look()
        known = self._needs.get((member, called))
        measured = size is not None and not torch.is_grad_enabled() and (known is None or size > known.size)
        limit = self.least if measured or torch.is_grad_enabled() else self._limit_of(member, used)
        self._records.append(_PassRecord((member, called), size, limit, measured))
        return limit

    def started(self, used: int) -> None:
        """Start measuring, now that weights above the limit have been evicted."""
        record = self._records[-1]
        if record.measured:
            self.note(used)
            record.before = record.most = record.lowest = self._memory.taken() - used
            self._memory.restart()

    def _look(self) -> None:
        """See how much memory other programs have left."""
        now = self._memory.capacity()
        self._shrank = now < self.capacity - self.slack // 2
        if self._shrank or now > self.capacity:
            self.capacity = now

    def give_back(self) -> None:
        """Return free memory to the device if other programs have taken some since the last pass. Call when weights
        above the limit have been evicted."""
        if self._shrank:
            self._memory.give_back()

    def note(self, used: int) -> None:
        """Record what is on the device besides weights. Call before the bytes of weights change.

        Args:
            used: bytes that weights have taken since the last note.
        """
        most, now = self._memory.peak() - used, self._memory.taken() - used
        for record in self._records:
            record.most = max(record.most, most)
            record.lowest = min(record.lowest, now)
        self._memory.restart()

    def restart(self) -> None:
        """Measure the peak from now on."""
        self._memory.restart()

    def end(self, finished: bool, used: int) -> int | None:
        """End the pass that began last.

        Args:
            finished: it did not raise.

        Returns:
            The limit of the pass around it; None if there is none.
        """
        if self.measures:
            self.note(used)
        record = self._records.pop()
        if not finished:
            self._needs.pop(record.called, None)
        elif record.measured:
            assert record.size is not None
            if record.lowest < record.before and record.called not in self._unsure:
                # The pass freed memory from before it, which may have hidden part of its need: measure once more.
                self._unsure.add(record.called)
            else:
                self._unsure.discard(record.called)
                self._needs[record.called] = _Need(record.size, record.most - record.lowest)
                self.passes_measured += 1
        return self._records[-1].limit if self._records else None

    def forget(self, member: int) -> None:
        """Remove everything about a model, which is no longer offloaded."""
        self._needs = {called: need for called, need in self._needs.items() if called[0] != member}
        self._last.pop(member, None)
        self._unsure = {called for called in self._unsure if called[0] != member}

    def need_of(self, member: int) -> int | None:
        """Most bytes besides weights that a measured pass of a model took; None if none was measured."""
        return max((need.nbytes for (who, _), need in self._needs.items() if who == member), default=None)

    def _limit_of(self, member: int, used: int) -> int:
        need = self.need_of(member)
        if need is None:
            return self.least
        others = self._memory.taken() - used
        limit = max(self.least, self.capacity - others - int(MARGIN * need) - self.slack)
        # After a small change it is not worth choosing anew what is cached.
        if not NEARLY * limit <= self._last.get(member, 0) <= limit:
            self._last[member] = limit
        return self._last[member]
