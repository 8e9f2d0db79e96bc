"""The order in which groups are used, learned and re-learned pass by pass.

What follows a pass is expected to be what followed the last pass like it: caches and branches make passes of a few
kinds that come in turn. Within a pass the cursor follows what really happens, and where that is not what was expected,
the latest known order that began the same way is expected from there. A skipped, repeated or reordered group costs one
missed prefetch, never a wrong result.
"""

from __future__ import annotations

__all__ = ["Schedule"]

Order = tuple[int, ...]

KINDS = 8  # of passes remembered


class Schedule:
    """Predicts the groups that come next. Groups are given by number; no tensor is involved."""

    def __init__(self) -> None:
        self._expected: Order = ()
        self._done: Order = ()  # the last whole pass
        self._followed: dict[Order, Order] = {}  # kind of pass to what came after it; the latest at the end
        self._now: list[int] = []
        self._cursor = 0

    @property
    def order(self) -> Order:
        """The order the prediction follows."""
        return self._expected

    def begin(self) -> None:
        """A pass starts."""
        self._expected = self._after(self._done)
        self._now = []
        self._cursor = 0

    def use(self, group: int) -> None:
        """``group`` is needed now."""
        self._now.append(group)
        expected, cursor = self._expected, self._cursor
        if cursor < len(expected) and expected[cursor] == group:
            self._cursor += 1
        elif not self._switch():
            place = self._find(group)
            if place is not None:
                self._cursor = place + 1

    def upcoming(self, count: int, *, wrap: bool = False) -> list[int]:
        """At most ``count`` distinct groups expected next, nearest first.

        Args:
            wrap: another pass is expected to follow, so after the last group of this one comes the first of that.
        """
        found: dict[int, None] = {}
        for order, start in ((self._expected, self._cursor), (self._after(self._expected) if wrap else (), 0)):
            for place in range(start, len(order)):
                if len(found) == count:
                    break
                found[order[place]] = None
        return list(found)

    def end(self) -> None:
        """The pass is over, and was a whole one."""
        now = tuple(self._now)
        if now:
            if self._done:
                self._followed.pop(self._done, None)
                self._followed[self._done] = now
                if len(self._followed) > KINDS:
                    del self._followed[next(iter(self._followed))]
            self._done = now
        self.begin()

    def _after(self, order: Order) -> Order:
        return self._followed.get(order, order)

    def _switch(self) -> bool:
        """Expect what a known kind of pass does that began as this one did; False if there is none."""
        now, begun = self._now, len(self._now)
        for order in (self._done, *reversed(self._followed)):
            if len(order) >= begun and order[begun - 1] == now[-1] and list(order[:begun]) == now:
                self._expected, self._cursor = order, begun
                return True
        return False

    def _find(self, group: int) -> int | None:
        # Ahead first: skipping is commoner than going back.
        for start, stop in ((self._cursor, len(self._expected)), (0, self._cursor)):
            for place in range(start, stop):
                if self._expected[place] == group:
                    return place
        return None
