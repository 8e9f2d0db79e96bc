"""Groups that are brought to the device ahead of their use.

How far ahead: one group where the caller has set no budget; as far as the budget leaves room for otherwise, into the
next pass too, so that the link has work while the last groups of a pass compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from .device_budget import Member
from .group import State, WeightGroup
from .modes import profiled
from .schedule import Schedule
from .transfer import Link

__all__ = ["FARTHEST", "Window"]

FARTHEST = 16  # groups ahead at most; more would only be held longer


class Window:
    """What comes next, as far as it is on its way.

    Args:
        depth: groups ahead without a budget.
        member: whose groups they are.

    Attributes:
        room: device bytes for groups that come and go; others' groups go for those at any time.
    """

    def __init__(self, link: Link, member: Member, depth: int) -> None:
        budget = link.budget
        self._link = link
        self._budget = budget
        self._member = member
        self._depth = FARTHEST if depth and budget.limit is not None else depth
        self._groups: Sequence[WeightGroup] = ()
        self._number: dict[WeightGroup, int] = {}
        self._schedules: dict[int, Schedule] = {}
        self._schedule = Schedule()
        self.ahead: list[WeightGroup] = []
        self.room = 0

    @property
    def reaches(self) -> bool:
        """Whether anything is brought ahead."""
        return self._depth > 0

    @property
    def order(self) -> tuple[int, ...]:
        """The order in which the present entry is expected to use its groups, by number."""
        return self._schedule.order

    def replace(self, groups: Sequence[WeightGroup]) -> None:
        """These are the groups from now on; what was learned is of no use any more."""
        self._groups = groups
        self._number = {group: number for number, group in enumerate(groups)}
        self._schedules.clear()
        self._schedule = Schedule()

    def begin(self, entry: int) -> None:
        """A pass begins by the door ``entry``; each has an order of its own."""
        self._schedule = self._schedules.setdefault(entry, Schedule())
        self._schedule.begin()

    def use(self, group: WeightGroup) -> None:
        """``group`` is needed now."""
        self._schedule.use(self._number[group])

    def advance(self) -> list[WeightGroup]:
        """Start what there is room for, drop what is not expected any more; returns what is on its way."""
        if not self._depth:
            return self.ahead
        wraps = self._budget.limit is not None and self._budget.returns(self._member)
        wanted: list[WeightGroup] = []
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

    def _start(self, group: WeightGroup) -> bool:
        with profiled("prefetch", group.spec.name):
            return group.prefetch(self._room_for_kept if group.kept else self._room_for_streamed)

    def _room_for_kept(self, nbytes: int) -> bool:
        displace = self._budget.may_displace(self._member)
        return self._budget.reserve(nbytes, self._member, required=False, displace=displace)

    def _room_for_streamed(self, nbytes: int) -> bool:
        if self._budget.limit is None:
            return True
        if self._link.streaming + nbytes > self.room:
            return False
        return self._budget.reserve(nbytes, self._member, required=False, displace=True)
