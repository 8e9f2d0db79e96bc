"""How long computing waited for each group, and at which bottleneck.

[Note: measuring without waiting]
Two moments are marked by events: the computing stream comes to need a group, and the group's copy ends. If the copy
ends later, computing waited for the difference. A copy on the computing stream itself is marked before and after. No
event is read during a pass: they are read before a later pass or for a report, once they have happened, so the calling
thread never waits for one. On a device without events the calling thread itself waits, and its clock is read. A mark
costs about as much as the launch of a small kernel, so the first :data:`FIRST` passes are measured, then one in
:data:`EVERY`.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import threading
import time
from collections.abc import Hashable
from typing import Any

import torch

__all__ = ["Bottleneck", "StallTimer", "Waited"]

FIRST = 3  # passes that are all measured
EVERY = 16  # of later passes, one in so many is measured
PENDING = 4  # measured passes whose events have not been read, at most


class Bottleneck(enum.StrEnum):
    """What a late group was waiting for."""

    DISK = "disk"  # its bytes had not been read when they were needed
    LINK = "host to device"  # its copy to the device had not ended


@dataclasses.dataclass(slots=True)
class Waited:
    """The waits for one group at one bottleneck.

    Attributes:
        seconds: seconds over all measured passes; ``worst``: in the worst of them.
    """

    seconds: float = 0.0
    worst: float = 0.0


@dataclasses.dataclass(slots=True)
class _Wait:
    group: Hashable
    bottleneck: Bottleneck
    start: Any
    end: Any


@dataclasses.dataclass(slots=True)
class _Pass:
    learned: bool
    waits: list[_Wait] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Tally:
    """The sum over measured passes of one kind.

    Attributes:
        passes: number of measured passes.
        waited: the waits, by group and bottleneck. Groups that were never late are not in it.
    """

    passes: int = 0
    waited: dict[tuple[Hashable, Bottleneck], Waited] = dataclasses.field(default_factory=dict)

    def add(self, totals: dict[tuple[Hashable, Bottleneck], float]) -> None:
        """Add one pass, with its seconds of waiting by group and bottleneck."""
        self.passes += 1
        for key, seconds in totals.items():
            if seconds > 0:
                waited = self.waited.setdefault(key, Waited())
                waited.seconds += seconds
                waited.worst = max(waited.worst, seconds)


class StallTimer:
    """Marks moments of measured passes, and later adds up the waits between them.

    Args:
        device: the device that computes.
        has_events: whether the device has streams, and events that tell the time.

    Attributes:
        watching: whether the present pass is measured.
    """

    def __init__(self, device: torch.device, *, has_events: bool) -> None:
        self._device = device
        self.has_events = has_events
        self._free: collections.deque[Any] = collections.deque()
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Remove all measurements, because the groups have changed."""
        self._now: _Pass | None = None
        self.watching = False
        self._pending: collections.deque[_Pass] = collections.deque()
        self._begun = 0
        self._tallies = {True: Tally(), False: Tally()}

    # During a pass

    def begin(self, *, learned: bool) -> None:
        """Begin a pass.

        Args:
            learned: the order in which the pass uses groups is known, so that they can be prefetched.
        """
        self._now = None
        self.watching = False
        if learned:
            self._begun += 1
            if self._begun > FIRST and self._begun % EVERY:
                return
        if len(self._pending) >= PENDING:
            self._read()
        if len(self._pending) < PENDING:
            self._now = _Pass(learned)
            self.watching = True

    def end(self, finished: bool) -> None:
        """End the pass. One that did not finish is not counted."""
        if self._now is not None and finished:
            self._pending.append(self._now)
        self._now = None
        self.watching = False

    def mark(self) -> Any:
        """A mark of this moment: of the current stream, or of the calling thread where there are no events."""
        if not self.has_events:
            return time.perf_counter()
        event = self._free.pop() if self._free else torch.Event(self._device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self._device))
        return event

    def note(self, group: Hashable, bottleneck: Bottleneck, start: Any, end: Any) -> None:
        """Record that computing waited for ``group`` from ``start`` to ``end``.

        The marks belong to the timer from now on, which uses their events again.
        """
        assert self._now is not None
        self._now.waits.append(_Wait(group, bottleneck, start, end))

    # Later

    def read(self) -> tuple[bool, Tally]:
        """The measurements so far.

        Passes in which the order of use was not known say nothing about later ones. They count only as long as there
        are no others. Passes whose events have not happened yet are left out.

        Returns:
            Whether the order of use was known in the passes that count, and their sum.
        """
        self._read()
        learned = self._tallies[True].passes > 0
        return learned, self._tallies[learned]

    def _read(self) -> None:
        with self._lock:
            while self._pending and self._is_over(self._pending[0]):
                done = self._pending.popleft()
                totals: dict[tuple[Hashable, Bottleneck], float] = collections.defaultdict(float)
                for wait in done.waits:
                    totals[wait.group, wait.bottleneck] += max(0.0, self._seconds(wait))
                    if self.has_events:
                        self._free.extend((wait.start, wait.end))
                self._tallies[done.learned].add(totals)

    def _is_over(self, done: _Pass) -> bool:
        return not self.has_events or all(w.start.query() and w.end.query() for w in reversed(done.waits))

    def _seconds(self, wait: _Wait) -> float:
        if not self.has_events:
            return float(wait.end - wait.start)
        return float(wait.start.elapsed_time(wait.end)) / 1e3
