"""The order in which groups are used, learned and re-learned pass by pass.

The prediction is the order of the last pass. The cursor follows what really happens, so a skipped, repeated or
reordered group costs one missed prefetch, never a wrong result.
"""

from __future__ import annotations

__all__ = ["Schedule"]


class Schedule:
    """Predicts the groups that come next. Groups are given by number; no tensor is involved."""

    def __init__(self) -> None:
        self._last: list[int] = []
        self._now: list[int] = []
        self._cursor = 0

    @property
    def order(self) -> tuple[int, ...]:
        """The order the prediction follows."""
        return tuple(self._last)

    def begin(self) -> None:
        """A pass starts."""
        self._now = []
        self._cursor = 0

    def use(self, group: int) -> None:
        """``group`` is needed now."""
        self._now.append(group)
        place = self._find(group)
        if place is not None:
            self._cursor = place + 1

    def upcoming(self, count: int, *, wrap: bool = False) -> list[int]:
        """At most ``count`` distinct groups expected next, nearest first.

        Args:
            wrap: another pass like the last one is expected to follow, so after the last group comes the first.
        """
        expected: dict[int, None] = {}
        last, cursor = self._last, self._cursor
        for place in range(cursor, len(last) + cursor * wrap):
            if len(expected) == count:
                break
            expected[last[place if place < len(last) else place - len(last)]] = None
        return list(expected)

    def end(self) -> None:
        """The pass is over; what it did is the prediction for the next one."""
        if self._now:
            self._last = self._now
        self._now = []
        self._cursor = 0

    def _find(self, group: int) -> int | None:
        # Ahead first: skipping is commoner than going back.
        for start, stop in ((self._cursor, len(self._last)), (0, self._cursor)):
            for place in range(start, stop):
                if self._last[place] == group:
                    return place
        return None
