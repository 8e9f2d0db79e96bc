"""How long computing waited for each group, and on which link the group was late.

[Note: measuring without waiting]
Where a group is needed two moments are marked by events: computing has come so far, and the copy is over. Computing
waited for the difference, if the copy was later. A copy on the computing stream itself is marked before and after.
Nothing is read during a pass: events are looked at when they have happened long since, or when somebody asks, and the
calling thread waits for none. Where there are no events, the calling thread itself waits, and its clock is read.
A mark costs about as much as a small kernel's launch, so only the first few passes are measured, then one in many.
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

FIRST = 3  # passes measured at once
EVERY = 16  # one in so many later
PENDING = 4  # passes whose events have not been read; no more are measured before


class Bottleneck(enum.StrEnum):
    """What a group that came late was held up by."""

    DISK = "disk"  # its bytes had not been read when they were needed
    LINK = "host to device"


@dataclasses.dataclass(slots=True)
class Waited:
    """Seconds waited for one group on one link, over the passes measured: in all, and in the worst."""

    seconds: float = 0.0
    worst: float = 0.0


@dataclasses.dataclass(slots=True)
class _Wait:
    group: Hashable
    link: Bottleneck
    start: Any
    end: Any


@dataclasses.dataclass(slots=True)
class _Pass:
    learned: bool
    waits: list[_Wait] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Tally:
    """What is known of one kind of passes.

    Attributes:
        passes: how many were measured.
        waited: by group and link; groups that were there in time have no entry.
    """

    passes: int = 0
    waited: dict[tuple[Hashable, Bottleneck], Waited] = dataclasses.field(default_factory=dict)

    def add(self, totals: dict[tuple[Hashable, Bottleneck], float]) -> None:
        """One more pass, with the seconds it waited."""
        self.passes += 1
        for key, seconds in totals.items():
            if seconds > 0:
                waited = self.waited.setdefault(key, Waited())
                waited.seconds += seconds
                waited.worst = max(waited.worst, seconds)


class StallTimer:
    """Marks moments of a pass, and adds up later what lay between them.

    Args:
        device: where it is computed.
        has_events: it has streams, and events that tell the time.

    Attributes:
        watching: the present pass is measured.
    """

    def __init__(self, device: torch.device, *, has_events: bool) -> None:
        self._device = device
        self.has_events = has_events
        self._free: collections.deque[Any] = collections.deque()
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything: the groups are others from now on."""
        self._now: _Pass | None = None
        self.watching = False
        self._pending: collections.deque[_Pass] = collections.deque()
        self._begun = 0
        self._tallies = {True: Tally(), False: Tally()}

    # During a pass

    def begin(self, *, learned: bool) -> None:
        """A pass begins.

        Args:
            learned: the order in which it uses groups is known, so that they can be brought ahead.
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
        """The pass is over; one that did not run to its end is not counted."""
        if self._now is not None and finished:
            self._pending.append(self._now)
        self._now = None
        self.watching = False

    def mark(self) -> Any:
        """This moment of the current stream, or of the calling thread where there are no events."""
        if not self.has_events:
            return time.perf_counter()
        event = self.event()
        event.record(torch.accelerator.current_stream(self._device))
        return event

    def event(self) -> Any:
        """An event that can be timed, for the end of a copy that :meth:`note` is told of later."""
        return self._free.pop() if self._free else torch.Event(self._device, enable_timing=True)

    def note(self, group: Hashable, link: Bottleneck, start: Any, end: Any) -> None:
        """From ``start``, computing waited for ``group`` to ``end``, which may have come before. Both marks are the
        timer's own from now on."""
        assert self._now is not None
        self._now.waits.append(_Wait(group, link, start, end))

    # Later

    def read(self) -> tuple[bool, Tally]:
        """Whether the order of use was known in the passes measured, and what was measured; passes in which it was not
        say nothing about later ones, and count only as long as there are no others. Passes whose events have not
        happened yet are left out."""
        self._read()
        learned = self._tallies[True].passes > 0
        return learned, self._tallies[learned]

    def _read(self) -> None:
        with self._lock:
            while self._pending and self._is_over(self._pending[0]):
                done = self._pending.popleft()
                totals: dict[tuple[Hashable, Bottleneck], float] = collections.defaultdict(float)
                for wait in done.waits:
                    totals[wait.group, wait.link] += max(0.0, self._seconds(wait))
                    if self.has_events:
                        self._free.extend((wait.start, wait.end))
                self._tallies[done.learned].add(totals)

    def _is_over(self, done: _Pass) -> bool:
        return not self.has_events or all(w.start.query() and w.end.query() for w in reversed(done.waits))

    def _seconds(self, wait: _Wait) -> float:
        if not self.has_events:
            return float(wait.end - wait.start)
        return float(wait.start.elapsed_time(wait.end)) / 1e3
