"""The groups that are copied to the device ahead of their use, in an order learned pass by pass.

[Note: the order of use]
A pass is expected to follow the last one like what followed then: caches and branches make passes of a few
kinds that alternate. Within a pass the cursor follows what really happens. Where that is not what was expected, the
latest known order that began the same way is expected from there. A skipped, repeated or reordered group costs one
missed prefetch, never a wrong result.

[Note: how far ahead]
One group where the caller has set no budget. With a budget, as far as it leaves memory, into the next pass too, so
that the link has work while the last groups of a pass compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..memory.device_budget import Member
from ..transfer.transfer import CopyEngine
from .modes import profiled
from .param_group import ParamGroup, State

__all__ = ["FARTHEST", "Prefetcher", "UsageOrder"]

Order = tuple[int, ...]

KINDS = 8  # of passes remembered


class UsageOrder:
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


FARTHEST = 16  # groups ahead at most; more would only be held longer


class Prefetcher:
    """What comes next, as far as it is on its way.

    Args:
        depth: groups ahead without a budget.
        member: whose groups they are.

    Attributes:
        room: device bytes for groups that come and go; others' groups go for those at any time.
    """

    def __init__(self, link: CopyEngine, member: Member, depth: int) -> None:
        budget = link.budget
        self._copy_engine = link
        self._budget = budget
        self._member = member
        self._depth = FARTHEST if depth and budget.limit is not None else depth
        self._groups: Sequence[ParamGroup] = ()
        self._number: dict[ParamGroup, int] = {}
        self._schedules: dict[int, UsageOrder] = {}
        self._schedule = UsageOrder()
        self.ahead: list[ParamGroup] = []
        self.room = 0

    @property
    def reaches(self) -> bool:
        """Whether anything is brought ahead."""
        return self._depth > 0

    @property
    def order(self) -> tuple[int, ...]:
        """The order in which the present entry is expected to use its groups, by number."""
        return self._schedule.order

    def replace(self, groups: Sequence[ParamGroup]) -> None:
        """These are the groups from now on; what was learned is of no use any more."""
        self._groups = groups
        self._number = {group: number for number, group in enumerate(groups)}
        self._schedules.clear()
        self._schedule = UsageOrder()

    def begin(self, entry: int) -> None:
        """A pass begins by the door ``entry``; each has an order of its own."""
        self._schedule = self._schedules.setdefault(entry, UsageOrder())
        self._schedule.begin()

    def use(self, group: ParamGroup) -> None:
        """``group`` is needed now."""
        self._schedule.use(self._number[group])

    def advance(self) -> list[ParamGroup]:
        """Start what there is room for, drop what is not expected any more; returns what is on its way."""
        if not self._depth:
            return self.ahead
        wraps = self._budget.limit is not None and self._budget.returns(self._member)
        wanted: list[ParamGroup] = []
        for number in self._schedule.upcoming(self._depth, wrap=wraps):
            group = self._groups[number]
            if not group.on_its_way and not self._start(group):
                break
            wanted.append(group)
        for group in self.ahead:
            if group not in wanted and group.state is State.PREFETCHED:
                group.discard()
        self.ahead = wanted
        return wanted

    def end(self, finished: bool) -> None:
        """The pass is over. If it ran to its end, the next one is expected to be like it."""
        self.ahead = []
        if finished:
            self._schedule.end()

    def _start(self, group: ParamGroup) -> bool:
        with profiled("prefetch", group.spec.name):
            return group.prefetch(self._room_for_kept if group.kept else self._room_for_streamed)

    def _room_for_kept(self, nbytes: int) -> bool:
        displace = self._budget.may_displace(self._member)
        return self._budget.reserve(nbytes, self._member, required=False, displace=displace)

    def _room_for_streamed(self, nbytes: int) -> bool:
        if self._budget.limit is None:
            return True
        if self._copy_engine.streaming + nbytes > self.room:
            return False
        return self._budget.reserve(nbytes, self._member, required=False, displace=True)
