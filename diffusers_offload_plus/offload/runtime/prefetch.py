"""The groups that are copied to the device ahead of their use, in an order learned pass by pass.

[Note: the order of use]
A pass is expected to follow the last one like what followed then: caches and branches make passes of a few
kinds that alternate. Within a pass the cursor follows what really happens. Where that is not what was expected, the
latest known order that began the same way is expected from there. A skipped, repeated or reordered group costs one
missed prefetch, never a wrong result.

[Note: how far ahead]
One group where the caller has set no budget. With a budget, as far as it leaves memory, into the next pass too, so
that copies go on while the last groups of a pass compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..groups.holders import Holders
from ..groups.param_group import GroupState, ParamGroup
from ..memory.device_budget import Member
from ..transfer.copy_engine import CopyEngine

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

    def use(self, group: int) -> bool:
        """``group`` is needed now.

        Returns:
            Whether it was expected.
        """
        self._now.append(group)
        expected, cursor = self._expected, self._cursor
        if cursor < len(expected) and expected[cursor] == group:
            self._cursor = cursor + 1
            return True
        if not self._switch():
            place = self._find(group)
            if place is not None:
                self._cursor = place + 1
        return False

    def peek(self, distance: int, *, wrap: bool = False) -> int | None:
        """The group that is expected after ``distance`` others; None if there is none.

        Args:
            wrap: another pass is expected to follow, so after the last group of this one comes the first of that.
        """
        place = self._cursor + distance
        if place < len(self._expected):
            return self._expected[place]
        place -= len(self._expected)
        following = self._after(self._expected) if wrap else ()
        return following[place] if place < len(following) else None

    def is_over(self, distance: int) -> bool:
        """Whether the pass is expected to be over when the group after ``distance`` others is used."""
        return self._cursor + distance >= len(self._expected)

    @property
    def reuse(self) -> float:
        """How often the pass so far used each group, in the mean."""
        return len(self._now) / max(1, len(set(self._now)))

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
    """The groups that come next, as far as they are on the device or on their way.

    Args:
        member: the engine whose groups they are.
        depth: groups ahead without a budget.

    Attributes:
        ahead: groups expected next, nearest first, with no gap: each is on the device or on its way.
        stream_bytes: device bytes that a budget leaves for groups that come and go.
    """

    def __init__(self, copy_engine: CopyEngine, member: Member, depth: int) -> None:
        budget = copy_engine.budget
        self._copy_engine = copy_engine
        self._budget = budget
        self._member = member
        self._depth = FARTHEST if depth and budget.limit is not None else depth
        self._groups: Sequence[ParamGroup] = ()
        self._holders: Holders
        self._orders: dict[int, UsageOrder] = {}
        self._order = UsageOrder()
        self._off_course = False
        self._wraps = False
        self.ahead: list[ParamGroup] = []
        self.stream_bytes = 0

    @property
    def reaches(self) -> bool:
        """Whether groups are copied ahead of their use at all."""
        return self._depth > 0

    @property
    def order(self) -> tuple[int, ...]:
        """The order in which the present entry is expected to use its groups, by number."""
        return self._order.order

    def replace(self, groups: Sequence[ParamGroup], holders: Holders) -> None:
        """These are the groups from now on; what was learned is of no use any more."""
        self._groups = groups
        self._holders = holders
        for number, group in enumerate(groups):
            group.number = number
        self._orders.clear()
        self._order = UsageOrder()

    def begin(self, entry: int) -> None:
        """A pass begins by calling the module with the id ``entry``; each entry has an order of its own."""
        self._order = self._orders.setdefault(entry, UsageOrder())
        self._order.begin()
        self._off_course = False
        self._wraps = self._budget.limit is not None and self._budget.returns(self._member)

    def use(self, group: ParamGroup) -> None:
        """``group`` is needed now."""
        if not self._order.use(group.number):
            self._off_course = True  # what is ahead is looked at anew by :meth:`advance`
        elif self.ahead and not self._off_course:
            del self.ahead[0]

    def advance(self, stream: Any = None) -> list[ParamGroup]:
        """Start copying what there is memory for.

        Args:
            stream: the current stream, where the caller knows it.

        Returns:
            Groups that were ahead and are not expected any more.
        """
        ahead, dropped = self.ahead, []
        if self._off_course:
            self._off_course = False
            dropped, ahead = ahead, []
            self.ahead = ahead
        while len(ahead) < self._depth:
            number = self._order.peek(len(ahead), wrap=self._wraps)
            if number is None:
                break
            group = self._groups[number]
            if self._order.is_over(len(ahead)) and not group.cached and self._may_be_written(group):
                break  # what is written to it between the passes would be missing in the copy
            if group.state is GroupState.OFFLOADED and not self._start(group, stream):
                break
            ahead.append(group)
        return [group for group in dropped if group not in ahead] if dropped else dropped

    def _may_be_written(self, group: ParamGroup) -> bool:
        return group.memory_is_held or self._holders.have_tensors_of(group)

    def note_evicted(self, group: ParamGroup) -> None:
        """``group`` was taken off the device; if it was ahead, it has to be started again."""
        if group in self.ahead:
            self._off_course = True

    def end(self, finished: bool) -> None:
        """The pass is over. If it ran to its end, the next one is expected to be like it."""
        self.ahead = []
        if finished:
            if self._budget.limit is not None:
                self._budget.note_reuse(self._member, self._order.reuse)
            self._order.end()

    def _start(self, group: ParamGroup, stream: Any) -> bool:
        reserve = None
        if self._budget.limit is not None:
            reserve = self._reserve_cached if group.cached else self._reserve_streamed
        try:
            return group.prefetch(reserve, stream)
        except torch.OutOfMemoryError:
            return False  # it is copied when it is needed, when others can be evicted for it

    def _reserve_cached(self, nbytes: int) -> bool:
        displace = self._budget.may_displace(self._member)
        return self._budget.reserve(nbytes, self._member, required=False, displace=displace)

    def _reserve_streamed(self, nbytes: int) -> bool:
        if self._copy_engine.streaming + nbytes > self.stream_bytes:
            return False
        return self._budget.reserve(nbytes, self._member, required=False, displace=True)
