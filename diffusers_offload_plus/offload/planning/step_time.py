"""How long a step takes when some groups stay on the device and the others are streamed through a room beside them.

[Note: the recurrences]
Let the streamed groups be numbered in order of use, step after step. Copies follow one another on the link, computing
is in order, and a copy may start once a certain earlier group has left: the last one that has to, for the room and
the depth alike. With ``x`` the moment a streamed group's compute ends, ``y`` the moment its copy ends, and ``after``
the compute time of the kept groups between it and the next streamed one::

    y[k] = max(y[k - 1], x[gate[k]] + offset[k]) + copy[k]
    x[k] = max(x[k - 1] + after[k - 1], y[k]) + compute[k]

Weights that are on the device between two steps may be written there by anybody, so the engine lets computing wait,
when a step ends, for all copies that are under way by then. If it ``settles`` so, the first streamed group of a step
and the kept ones before it, which take ``head`` seconds, come after the last of these copies, number ``settled``::

    x[0] = max(x[-1] + after[-1], y[settled] + head) + compute[0]

and so does a copy that may start when the turn of that group has come, as the depth has it for number ``depth``.
Without that, more room is never slower, which the search for what to keep builds on; so it searches without.

[Note: the steady step]
Only maxima and sums occur, so the mean step time tends to the largest mean weight of a cycle in the graph of these
recurrences (weight over steps passed), whatever the first step was, and there is a schedule that repeats after
every single step with exactly that step time. Both are computed, not awaited: a run that is nearly balanced would need
thousands of steps to settle. We guess a step time that some cycle has, relax the longest paths from a node on that
cycle, and whenever the paths themselves close a heavier cycle, go on from that one. Each guess belongs to another
cycle and is larger than the one before, so this ends; and it ends where no path can be made longer, which says that
no cycle is heavier.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Bandwidth", "GroupCost", "StepTime", "Stream", "simulate_step", "stock_step"]

# Relative to the step time: what rounding in sums of a thousand terms may amount to.
ROUNDING = 1e-11
NEVER = float("-inf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupCost:
    """What one group costs: ``nbytes`` to copy, and the seconds its modules compute in one step."""

    nbytes: int
    compute_seconds: float


@dataclasses.dataclass(frozen=True)
class Bandwidth:
    """How fast groups travel: one copy takes ``seconds_per_copy`` and its bytes at ``bytes_per_second``."""

    bytes_per_second: float
    seconds_per_copy: float = 0.0

    def seconds(self, nbytes: int) -> float:
        """Seconds that one copy of ``nbytes`` takes."""
        return self.seconds_per_copy + nbytes / self.bytes_per_second


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """One steady step.

    Attributes:
        seconds: from a moment of one step to the same moment of the next.
        stalls: for each group the seconds that computing waited for it.
        compute_seconds: sum over all groups.
        streamed_bytes: bytes copied in a step, in ``copies`` copies.
        peak_bytes: most bytes of streamed groups on the device at one moment; kept groups come on top.
    """

    seconds: float
    stalls: tuple[float, ...]
    compute_seconds: float
    streamed_bytes: int
    copies: int
    peak_bytes: int

    def bound(self, link: Bandwidth) -> float:
        """Seconds below which no schedule of these copies can be: all computing, or all copying."""
        copying = self.streamed_bytes / link.bytes_per_second + self.copies * link.seconds_per_copy
        return max(self.compute_seconds, copying)


class _Gates(NamedTuple):
    """For each streamed group the last one whose compute must be over, and seconds after that, before its copy may
    start. Groups are counted from the first of the step before."""

    place: list[int]
    offset: list[float]
    settled: int  # the last copy that is under way when a step ends, if that is waited for; else -1
    turn: int  # the copy that may start when the turn of the first streamed group has come; else -1


class _Cause(enum.Enum):
    """What a copy waited for last."""

    LINK = enum.auto()
    GATE = enum.auto()
    SETTLED = enum.auto()  # the copies that were under way when the step ended


class _Run(NamedTuple):
    """One repeating step: moments in seconds, two steps of compute ends, one of starts and ends of copies."""

    seconds: float
    ends: list[float]
    copy_starts: list[float]
    copy_ends: list[float]


class Stream:
    """The groups of a step of which those in ``kept`` are on the device already; several rooms may be tried."""

    def __init__(self, groups: Sequence[GroupCost], kept: frozenset[int], link: Bandwidth) -> None:
        self.places = [index for index in range(len(groups)) if index not in kept]
        self.sizes = [groups[place].nbytes for place in self.places]
        self.copy = [link.seconds(nbytes) for nbytes in self.sizes]
        self.compute = [groups[place].compute_seconds for place in self.places]
        self.compute_seconds = sum(group.compute_seconds for group in groups)
        self.streamed_bytes = sum(self.sizes)
        self.after: list[float] = []
        self.tail = self.head = 0.0
        self.kept_last = True
        if self.places:
            self._add_kept(groups)

    def _add_kept(self, groups: Sequence[GroupCost]) -> None:
        seconds = [group.compute_seconds for group in groups]
        stops = [*self.places[1:], len(groups)]
        self.after = [sum(seconds[place + 1 : stop]) for place, stop in zip(self.places, stops, strict=True)]
        self.tail = self.after[-1]  # to the end of the step
        self.head = sum(seconds[: self.places[0]])
        self.after[-1] += self.head
        self.kept_last = self.places[-1] < len(groups) - 1

    @property
    def bound(self) -> float:
        """Seconds of a step below which no room helps."""
        return max(self.compute_seconds, sum(self.copy))

    def depth_within(self, room: int) -> int:
        """Groups ahead of the one computing that ``room`` bytes let the link get; a smaller depth would slow it."""
        gates = self._gates(room, None, True, False)
        count = len(self.places)
        depths = (count + k - gate - (not self.after[gate % count]) for k, gate in enumerate(gates.place))
        return max(depths, default=0)

    def seconds(self, room: int, *, depth: int | None = None, wrap: bool = True, settles: bool = False) -> float:
        """Seconds of a steady step; see :func:`simulate_step`."""
        return self._steady(self._gates(room, depth, wrap, settles)).seconds if self.places else self.compute_seconds

    def step(
        self, group_count: int, room: int, *, depth: int | None = None, wrap: bool = True, settles: bool = False
    ) -> StepTime:
        """A steady step of ``group_count`` groups; see :func:`simulate_step`."""
        stalls = [0.0] * group_count
        seconds, peak = self.compute_seconds, 0
        if self.places:
            gates = self._gates(room, depth, wrap, settles)
            run = self._steady(gates)
            seconds, peak = run.seconds, self._peak(run)
            settling = run.ends[len(self.places) - 1] + self.tail
            for k, place in enumerate(self.places):
                ready = settling if k <= gates.settled else run.ends[len(self.places) + k - 1] + self.after[k - 1]
                stalls[place] = max(0.0, run.copy_ends[k] - ready)
                settling = max(settling, run.copy_ends[k])
        return StepTime(
            seconds=seconds,
            stalls=tuple(stalls),
            compute_seconds=self.compute_seconds,
            streamed_bytes=self.streamed_bytes,
            copies=len(self.places),
            peak_bytes=peak,
        )

    def _gates(self, room: int, depth: int | None, wrap: bool, settles: bool) -> _Gates:
        count, sizes = len(self.sizes), self.sizes
        if room < max(sizes, default=0):
            raise ValueError(f"A room of {room} bytes cannot hold the largest streamed group, {max(sizes)} bytes.")
        places, offsets, settled, turn = [], [], -1, -1
        # A group is never on the device twice, so its own last use bounds how far ahead its copy can be.
        first, held = 1, self.streamed_bytes - (sizes[0] if sizes else 0)
        for k in range(count):
            held += sizes[k]
            while held > room or first <= k:
                held -= sizes[first % count]
                first += 1
            gate, seconds = first - 1, 0.0
            under_way = gate < count - 1 + self.kept_last
            if depth is not None and depth < count:
                started = count + k - depth - 1
                if (started, self.after[started % count]) >= (gate, seconds):
                    gate, seconds, under_way = started, self.after[started % count], started < count - 1
                    turn = k if started == count - 1 else turn
            if settles and wrap and under_way:
                settled = k
            if not wrap:
                gate, seconds = max((gate, seconds), (count - 1, self.tail))
            places.append(gate)
            offsets.append(seconds)
        return _Gates(places, offsets, settled, turn)

    def _steady(self, gates: _Gates) -> _Run:
        """See [Note: the steady step]."""
        count = len(self.places)
        seconds = self.bound
        ends, link_free = self._along_bound()
        while True:
            run, waited, causes = self._pass(gates, ends, link_free, seconds)
            risen = self._most_risen(run, link_free)
            if risen is None:
                return run
            cycle = self._cycle(gates, waited, causes, risen)
            if cycle is not None and cycle[0] > seconds * (1 + ROUNDING):
                seconds, source = cycle
                ends = [NEVER] * (2 * count)
                link_free = NEVER
                if source is None:
                    link_free = 0.0
                else:
                    ends[source] = 0.0
                continue
            for k in range(count):
                ends[k] = max(ends[k], ends[count + k] - seconds)
            link_free = max(link_free, run.copy_ends[-1] - seconds)

    def _along_bound(self) -> tuple[list[float], float]:
        """Paths to start from, along the cycle that the bound belongs to: nothing but copying, or but computing."""
        count = len(self.places)
        ends, moment = [0.0] * (2 * count), 0.0
        if sum(self.copy) > self.compute_seconds:
            for k in range(count - 1, -1, -1):
                ends[k] = moment + self.compute[k]
                moment -= self.copy[k]
            return ends, 0.0
        for k in range(count - 1, -1, -1):
            ends[k] = moment
            moment -= self.compute[k] + self.after[k - 1]
        return ends, NEVER

    def _pass(
        self, gates: _Gates, ends: list[float], link_free: float, seconds: float
    ) -> tuple[_Run, list[bool], list[_Cause]]:
        """One step after the one in the first half of ``ends``; which computes waited, and for what each copy did."""
        count = len(self.places)
        waited, causes = [], []
        copy_starts: list[float] = []
        copy_ends: list[float] = []
        end, idle = ends[count - 1], self.after[-1]
        place, copied, settled = count, 0, gates.settled
        for compute, after in zip(self.compute, self.after, strict=True):
            while copied <= place - count or copied <= settled:
                opens, cause = ends[gates.place[copied]] + gates.offset[copied], _Cause.GATE
                if copied == gates.turn and settled >= 0 and copy_ends[settled] + self.head > opens:
                    opens, cause = copy_ends[settled] + self.head, _Cause.SETTLED
                causes.append(cause if opens > link_free else _Cause.LINK)
                link_free = max(link_free, opens)
                copy_starts.append(link_free)
                link_free += self.copy[copied]
                copy_ends.append(link_free)
                copied += 1
            end += idle
            arrived = copy_ends[place - count]
            if place == count and settled >= 0:
                arrived = copy_ends[settled] + self.head
            waited.append(arrived > end)
            if arrived > end:
                end = arrived
            end += compute
            ends[place] = end
            place += 1
            idle = after
        return _Run(seconds, ends, copy_starts, copy_ends), waited, causes

    def _most_risen(self, run: _Run, link_free: float) -> tuple[bool, int] | None:
        """The node of the last pass whose path grew most: whether it is a copy, and which group's. None: none did."""
        count = len(self.places)
        most, found = run.seconds * (1 + ROUNDING), None
        for k in range(count):
            if run.ends[count + k] - run.ends[k] > most:
                most, found = run.ends[count + k] - run.ends[k], (False, k)
        if run.copy_ends[-1] - link_free > most:
            found = (True, count - 1)
        return found

    def _cycle(
        self, gates: _Gates, waited: list[bool], causes: list[_Cause], node: tuple[bool, int]
    ) -> tuple[float, int | None] | None:
        """Follow what each moment waited for, from ``node`` back to a node seen before.

        Returns:
            Seconds a step of that cycle, and the compute (None: the last copy) through which it enters a step. None if
            there is no cycle.
        """
        count = len(self.places)
        is_copy, k = node
        seen: dict[tuple[bool, int], tuple[float, int]] = {}
        weight, steps = 0.0, 0
        entry: int | None = None
        while (is_copy, k) not in seen:
            seen[is_copy, k] = weight, steps
            if is_copy:
                weight += self.copy[k]
                before = k - 1
                if causes[k] is _Cause.GATE:
                    weight += gates.offset[k]
                    is_copy, before = False, gates.place[k] - count
                elif causes[k] is _Cause.SETTLED:
                    weight += self.head
                    before = gates.settled
            else:
                weight += self.compute[k]
                if waited[k]:
                    is_copy, before = True, k
                    if k == 0 and gates.settled >= 0:
                        weight += self.head
                        before = gates.settled
                else:
                    weight += self.after[k - 1]
                    before = k - 1
            if before < 0:
                steps += 1
                before += count
                entry = None if is_copy else before
            k = before
        start_weight, start_steps = seen[is_copy, k]
        if steps == start_steps:
            return None
        return (weight - start_weight) / (steps - start_steps), entry

    def _peak(self, run: _Run) -> int:
        count = len(self.places)
        first, held, peak = 1, self.streamed_bytes - self.sizes[0], 0
        for k, start in enumerate(run.copy_starts):
            held += self.sizes[k]
            while first <= k or (first < count + k and run.ends[first] <= start):
                held -= self.sizes[first % count]
                first += 1
            peak = max(peak, held)
        return peak


def simulate_step(
    groups: Sequence[GroupCost],
    kept: frozenset[int],
    room: int,
    link: Bandwidth,
    *,
    depth: int | None = None,
    wrap: bool = True,
    settles: bool = False,
) -> StepTime:
    """One steady step over ``groups``, in order of use.

    A streamed group takes its bytes of the room from the start of its copy to the end of its compute.

    Args:
        kept: indices of groups that are on the device and never travel.
        room: bytes of device memory that all others pass through.
        depth: most streamed groups copied ahead of the one computing; None: as many as the room holds. With 0 a copy
            starts when the group's turn has come.
        wrap: groups of the next step are copied ahead as well.
        settles: when a step ends, computing waits for the copies that are under way, as the engine does; see
            [Note: the recurrences].

    Raises:
        ValueError: a streamed group is larger than the room.
    """
    return Stream(groups, kept, link).step(len(groups), room, depth=depth, wrap=wrap, settles=settles)


def stock_step(groups: Sequence[GroupCost], link: Bandwidth) -> StepTime:
    """The step of diffusers' own group offloading with streams: nothing is kept, one group is copied ahead while
    another computes, and the first group of each step is waited for in full."""
    sizes = [group.nbytes for group in groups]
    pairs = [a + b for a, b in itertools.pairwise(sizes)]
    return simulate_step(groups, frozenset(), max(pairs or sizes, default=0), link, depth=1, wrap=False)
