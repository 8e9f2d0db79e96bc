"""Which groups stay on the device, and how large the room for the others is, within a budget of device memory.

[Note: more memory is never slower]
Everything worth having (sets of kept groups, each with some rooms) is searched once and without knowing any budget. A
budget then takes the fastest of what fits in it, so a larger one has all that a smaller one has to choose from.

[Note: the search]
It starts from sets that are spread evenly over the step: kept groups in compute time, so that they compute while
others travel, or what is left to copy in proportion to it. It goes on by adding, removing and exchanging single groups
of the best sets found so far. A set is only simulated if the bound of its step time, which takes no simulation,
promises more than what is known to take no more memory. The effort is bounded by a number that depends on the count of
groups alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence

from .step_time import Bandwidth, GroupCost, StepTime, Stream

__all__ = ["Choice", "Frontier", "choose_kept", "next_gain", "smallest_budget"]

WORTH = 0.005  # a promise of less than this share of the step time is not looked into
NEAR = 0.1  # what is slower than the best by less than this share may lead to better
FEW = 12  # above so many groups, smaller rooms than that of the set at hand are not tried for its neighbours
LEVEL, LEVELS = 0.97, 128  # shares of the copying to leave: each so many times the one before, and how many
EXHAUSTIVE = 7  # up to so many groups every set is tried
WINDOWS = (1, 2, 3, 4, 6, 8)  # rooms are tried that hold any so many streamed groups in a row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What to keep.

    Attributes:
        kept: indices of the groups that stay on the device.
        room: bytes of device memory that the others pass through.
        depth: streamed groups copied ahead of the one computing, as many as the room holds.
        device_bytes: those kept and the room.
        step: the step that the model expects.
    """

    kept: frozenset[int]
    room: int
    depth: int
    device_bytes: int
    step: StepTime


@dataclasses.dataclass(frozen=True)
class _Candidate:
    device_bytes: int
    seconds: float
    kept: frozenset[int]
    room: int


class _Staircase:
    """Candidates of which none is both larger and slower than another, by device bytes."""

    def __init__(self) -> None:
        self._bytes: list[int] = []
        self.steps: list[_Candidate] = []

    def within(self, nbytes: int) -> _Candidate | None:
        """The fastest that takes at most ``nbytes``."""
        place = bisect.bisect_right(self._bytes, nbytes)
        return self.steps[place - 1] if place else None

    def add(self, new: _Candidate) -> None:
        """Keep ``new`` if it is faster than all that is no larger."""
        known = self.within(new.device_bytes)
        if known is not None and known.seconds <= new.seconds:
            return
        start = stop = bisect.bisect_left(self._bytes, new.device_bytes)
        while stop < len(self.steps) and self.steps[stop].seconds >= new.seconds:
            stop += 1
        self.steps[start:stop] = [new]
        self._bytes[start:stop] = [new.device_bytes]


class Frontier:
    """The choices worth having for one sequence of groups, whatever the budget.

    Args:
        groups: in order of use.
        nests: sets of groups that are on the device at the same time, since their modules run inside one another.
            The room holds all of a nest that is not kept; the model of the step knows nothing else about nests.
        always_ahead: groups of the next step are copied ahead as well, while the current one ends.
    """

    def __init__(
        self,
        groups: Sequence[GroupCost],
        link: Bandwidth,
        nests: Iterable[frozenset[int]] = (),
        *,
        always_ahead: bool = True,
    ) -> None:
        self._groups = tuple(groups)
        self._copy_engine = link
        self._nests = [nest for nest in dict.fromkeys(nests) if len(nest) > 1]
        self._wrap = always_ahead
        self._sizes = [group.nbytes for group in groups]
        self._copy = [link.seconds(nbytes) for nbytes in self._sizes]
        self._compute_seconds = sum(group.compute_seconds for group in groups)
        self._seen: list[_Candidate] = []
        self._tried: set[frozenset[int]] = set()
        self._found = _Staircase()
        self._effort = _effort(len(groups))
        # Groups further apart are not exchanged.
        self._reach = len(groups) if len(groups) <= 20 else 3
        self._search()
        self._seen.clear()
        self._tried.clear()

    def best(self, budget: int) -> Choice:
        """The fastest choice in ``budget`` bytes of device memory; of equals the one with fewer bytes.

        Raises:
            ValueError: nothing fits.
        """
        found = self._found.within(budget)
        if found is None:
            needed = smallest_budget(self._groups, self._nests)
            raise ValueError(f"A budget of {budget} bytes is too small: the groups need {needed} bytes at least.")
        stream = Stream(self._groups, found.kept, self._copy_engine)
        depth = stream.depth_within(found.room)
        step = stream.step(len(self._groups), found.room, depth=depth, wrap=self._wrap)
        return Choice(kept=found.kept, room=found.room, depth=depth, device_bytes=found.device_bytes, step=step)

    def gain(self, budget: int, more: int) -> float:
        """Seconds a step that ``more`` bytes on top of ``budget`` would save.

        Raises:
            ValueError: nothing fits in ``budget``.
        """
        return self.best(budget).step.seconds - self.best(budget + more).step.seconds

    def _search(self) -> None:
        self._try_room(Stream(self._groups, frozenset(), self._copy_engine), frozenset(), self._stock_room())
        self._try(frozenset())  # what fits into the smallest budget
        for kept in self._seeds():
            if self._effort < 0:
                break
            self._try(kept)
        if len(self._groups) <= EXHAUSTIVE:
            for kept in _subsets(len(self._groups)):
                self._try(kept)
        else:
            self._improve()

    def _stock_room(self) -> int:
        pairs = (a + b for a, b in itertools.pairwise(self._sizes))
        return max([self._floor(frozenset()), *pairs])

    def _floor(self, kept: frozenset[int]) -> int:
        """The smallest room beside ``kept``."""
        single = max((nbytes for index, nbytes in enumerate(self._sizes) if index not in kept), default=0)
        return max([single, *(sum(self._sizes[index] for index in nest - kept) for nest in self._nests)])

    def _try(self, kept: frozenset[int]) -> None:
        """Simulate ``kept`` with the rooms that promise something."""
        if kept in self._tried:
            return
        self._tried.add(kept)
        beside = sum(self._sizes[index] for index in kept)
        copying = sum(seconds for index, seconds in enumerate(self._copy) if index not in kept)
        bound = max(self._compute_seconds, copying)
        floor = self._floor(kept)
        self._effort -= 10 + len(self._groups) // 5
        if not self._promises(beside + floor, bound):
            return
        stream = Stream(self._groups, kept, self._copy_engine)
        self._effort -= 10 + len(self._groups) // 2
        rooms = _rooms(stream.sizes, floor)
        slowest = self._try_room(stream, kept, floor)
        self._try_between(stream, kept, beside, rooms[1:], slowest, bound)

    def _try_between(
        self, stream: Stream, kept: frozenset[int], beside: int, rooms: list[int], slowest: float, fastest: float
    ) -> None:
        """``rooms`` by halves; a larger one is never slower, so whole ranges of them need not be tried."""
        if not rooms or fastest > slowest * (1 - WORTH) or not self._promises(beside + rooms[0], fastest):
            return
        middle = len(rooms) // 2
        seconds = self._try_room(stream, kept, rooms[middle])
        self._try_between(stream, kept, beside, rooms[:middle], slowest, seconds)
        self._try_between(stream, kept, beside, rooms[middle + 1 :], seconds, fastest)

    def _try_room(self, stream: Stream, kept: frozenset[int], room: int) -> float:
        self._effort -= 20 + len(stream.places)
        beside = sum(self._sizes[index] for index in kept)
        seconds = stream.seconds(room, wrap=self._wrap)
        self._seen.append(_Candidate(beside + room, seconds, kept, room))
        self._found.add(self._seen[-1])
        return seconds

    def _promises(self, nbytes: int, bound: float) -> bool:
        known = self._found.within(nbytes)
        return known is None or bound < known.seconds * (1 - WORTH)

    def _seeds(self) -> Iterator[frozenset[int]]:
        everything = range(len(self._groups))
        orders = [list(everything)]
        classes = sorted(set(self._sizes))
        if 1 < len(classes) <= 4:
            orders += [[i for i in everything if self._sizes[i] == nbytes] for nbytes in classes]
        levels = LEVELS if len(set(self._groups)) > 1 else 0  # equal groups are level if they are spread
        # Coarse before fine, so that effort that runs out is missing everywhere alike.
        for start, stride in ((0, 8), (4, 8), (2, 4), (1, 2)):
            for order in orders:
                rest = frozenset(everything) - frozenset(order)
                for count in _thinned(len(order))[start::stride]:
                    kept = self._spread(order, count)
                    yield kept
                    yield kept | rest
            for power in range(start, levels, stride):
                yield self._levelled(LEVEL**power)

    def _levelled(self, share: float) -> frozenset[int]:
        """Keep so much that about ``share`` of the copying is left, evenly over the step's computing."""
        rate = share * sum(self._copy) / self._compute_seconds if self._compute_seconds else 0.0
        kept, due = set(), 0.0
        for index, group in enumerate(self._groups):
            due += group.compute_seconds * rate
            if due < self._copy[index] / 2:
                kept.add(index)
            else:
                due -= self._copy[index]
        return frozenset(kept)

    def _spread(self, order: Sequence[int], count: int) -> frozenset[int]:
        """``count`` of the groups in ``order``, spread evenly in compute time."""
        weights = [self._groups[index].compute_seconds for index in order]
        total = sum(weights)
        if not total:
            weights, total = [1.0] * len(order), float(len(order))
        middle = [end - weight / 2 for end, weight in zip(itertools.accumulate(weights), weights, strict=True)]
        chosen: list[int] = []
        for k in range(count):
            aim = total * k / count + weights[0] / 2
            first = chosen[-1] + 1 if chosen else 0
            last = len(order) - count + k
            place = min(max(bisect.bisect_left(middle, aim * (1 - 1e-9), first), first), last)
            chosen.append(place)
        return frozenset(order[place] for place in chosen)

    def _improve(self) -> None:
        """Try what differs by one group or two from the best, and after that from what comes near."""
        explored: set[frozenset[int]] = set()
        while self._effort > 0:
            # Largest first: what streams little is composed from what streams less, and there a group matters most.
            fresh = [found for found in reversed(self._found.steps) if found.kept not in explored]
            fresh = fresh or self._near(explored)
            if not fresh:
                return
            for found in fresh:
                if self._effort <= 0 or found.kept in explored:
                    continue
                explored.add(found.kept)
                self._explore(found)

    def _explore(self, found: _Candidate) -> None:
        """Try what keeps one group more or fewer than ``found``, or another one instead."""
        kept = sorted(found.kept)
        streamed = [index for index in range(len(self._groups)) if index not in found.kept]
        copying = sum(self._copy[index] for index in streamed)
        moves: list[tuple[int | None, int | None]] = [(None, index) for index in streamed]
        moves += [(index, None) for index in kept]
        moves += [(out, into) for out in kept for into in streamed if abs(out - into) <= self._reach]
        largest = [*sorted((self._sizes[index] for index in streamed), reverse=True)[:2], 0, 0]
        for out, into in moves:
            nbytes = found.device_bytes - found.room
            seconds, room = copying, largest[0]
            if into is not None:
                nbytes += self._sizes[into]
                seconds -= self._copy[into]
                if self._sizes[into] == room:
                    room = largest[1]
            if out is not None:
                nbytes -= self._sizes[out]
                seconds += self._copy[out]
                room = max(room, self._sizes[out])
            if len(self._groups) > FEW:
                room = max(room, found.room)
            if self._promises(nbytes + room, max(self._compute_seconds, seconds)):
                if self._effort <= 0:
                    return
                self._try(found.kept ^ {index for index in (out, into) if index is not None})
        self._effort -= len(self._groups) // 4 + len(moves) // 2

    def _near(self, explored: set[frozenset[int]]) -> list[_Candidate]:
        """The unexplored ones that are hardly slower than the best that take no more memory, nearest first."""
        behind = []
        for found in self._seen:
            best = self._found.within(found.device_bytes)
            if best is not None and found.kept not in explored and found.seconds <= best.seconds * (1 + NEAR):
                behind.append((found.seconds / best.seconds if best.seconds else 1.0, found))
        behind.sort(key=lambda pair: pair[0])
        return [found for _, found in behind[: len(self._groups)]]


def _effort(count: int) -> int:
    """How much may be tried, about one unit a microsecond. Among few groups each one matters more."""
    return 24_000 + 200 * count + 2_000 * max(0, 60 - count)


def _subsets(count: int) -> Iterator[frozenset[int]]:
    for size in range(count, -1, -1):
        yield from map(frozenset, itertools.combinations(range(count), size))


def _thinned(count: int) -> list[int]:
    """Of 0 to ``count``, all while the rest is small, then steps of 2 % of it."""
    rest, counts = 0, []
    while rest <= count:
        counts.append(count - rest)
        rest += max(1, rest // 50)
    return counts


def _rooms(sizes: Sequence[int], floor: int) -> list[int]:
    """Rooms to try, smallest first: each holds any so many neighbours of ``sizes``."""
    ends = [0, *itertools.accumulate([*sizes, *sizes])]
    count = len(sizes)
    if count <= 12:
        runs = {ends[k + window] - ends[k] for window in range(1, count + 1) for k in range(count)}
    else:
        runs = {max(map(operator.sub, ends[window:], ends)) for window in WINDOWS}
    rooms = {floor, *(run for run in runs if run > floor)}
    return sorted(rooms)


def choose_kept(
    groups: Sequence[GroupCost],
    budget: int,
    link: Bandwidth,
    *,
    nests: Sequence[frozenset[int]] = (),
    always_ahead: bool = True,
) -> Choice:
    """The fastest choice in ``budget`` bytes of device memory; see :class:`Frontier`, which serves several budgets.

    Raises:
        ValueError: the budget is below :func:`smallest_budget`.
    """
    return Frontier(groups, link, nests, always_ahead=always_ahead).best(budget)


def smallest_budget(groups: Sequence[GroupCost], nests: Iterable[frozenset[int]] = ()) -> int:
    """Bytes of device memory without which these groups cannot run: the largest nest or single group.

    Keeping a group never lowers that, since it makes the room smaller by no more than the group itself.
    """
    sizes = [group.nbytes for group in groups]
    return max([0, *sizes, *(sum(sizes[index] for index in nest) for nest in nests)])


def next_gain(
    groups: Sequence[GroupCost],
    budget: int,
    link: Bandwidth,
    nests: Sequence[frozenset[int]] = (),
    more: int = 1 << 30,
) -> float:
    """Seconds a step that ``more`` bytes on top of ``budget`` would save."""
    return Frontier(groups, link, nests).gain(budget, more)
