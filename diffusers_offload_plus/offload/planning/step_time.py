"""The step model: how long a step takes when some groups are cached on the device and the others stream.

[Note: the recurrences]
Streamed groups are numbered in order of use, step after step. The copy engine makes one copy at a time, groups compute
in order, and a copy starts once earlier groups have left enough of the stream bytes. ``gate[k]`` is the last of those
earlier groups. ``before[k]`` is the compute time of cached groups between streamed groups ``k - 1`` and ``k``. Copies
and computing then end at these moments::

    copied[k] = max(copied[k - 1], computed[gate[k]]) + copy[k]
    computed[k] = max(computed[k - 1] + before[k], copied[k]) + compute[k]

Copies go on from one step into the next: nothing waits at the end of a step for a group that only the engine refers
to.

[Note: the steady step]
Steps are computed one after another, from a cold start, until one ends like the step before: from there on all steps
are alike. If computing and copying take nearly the same time, that can take many steps; then the last of
:data:`MOST_STEPS` is near enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

__all__ = ["Bandwidth", "GroupCost", "copies_ahead", "step_seconds"]

MOST_STEPS = 60
ROUNDING = 1e-9  # of a step; smaller differences between two steps do not count


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupCost:
    """The cost of one group in one step: the bytes to copy, and the seconds that its modules compute."""

    nbytes: int
    compute_seconds: float


@dataclasses.dataclass(frozen=True)
class Bandwidth:
    """The speed of copies: ``seconds_per_copy``, and after that ``bytes_per_second``."""

    bytes_per_second: float
    seconds_per_copy: float = 0.0

    def seconds(self, nbytes: int) -> float:
        """Seconds that one copy of ``nbytes`` takes."""
        return self.seconds_per_copy + nbytes / self.bytes_per_second


class _State(NamedTuple):
    """The state at the end of a step.

    Attributes:
        computed: when each streamed group was computed, in seconds relative to the end of the step; not positive.
        copied: when the last copy ended, likewise.
    """

    computed: list[float]
    copied: float

    def is_near(self, other: _State, seconds: float) -> bool:
        """Whether no moment differs by more than ``seconds``."""
        pairs = zip(self.computed, other.computed, strict=True)
        return abs(self.copied - other.copied) <= seconds and all(abs(a - b) <= seconds for a, b in pairs)


class _Steps:
    """Steps in which the groups at ``places`` stream and the others are cached."""

    def __init__(
        self, groups: Sequence[GroupCost], places: Sequence[int], stream_bytes: int, bandwidth: Bandwidth
    ) -> None:
        seconds = [group.compute_seconds for group in groups]
        self.copy = [bandwidth.seconds(groups[place].nbytes) for place in places]
        self.compute = [seconds[place] for place in places]
        starts = [0, *(place + 1 for place in places)]
        self.before = [sum(seconds[start:place]) for start, place in zip(starts, places, strict=False)]
        self.tail = sum(seconds[starts[-1] :])
        self.gates = _gates([groups[place].nbytes for place in places], stream_bytes)

    def after(self, state: _State) -> tuple[_State, float]:
        """The state at the end of the next step, and the seconds that the step takes."""
        computed, copied, now = list(state.computed), state.copied, 0.0
        for gate, copy, before, compute in zip(self.gates, self.copy, self.before, self.compute, strict=True):
            copied = max(copied, computed[gate]) + copy
            now = max(now + before, copied) + compute
            computed.append(now)
        end = now + self.tail
        return _State([moment - end for moment in computed[len(self.copy) :]], copied - end), end


def _gates(sizes: Sequence[int], stream_bytes: int) -> list[int]:
    """For each streamed group the last group whose bytes have to be free before its copy starts.

    Groups are counted from the first group of the step before. No group is on the device twice.
    """
    count, gates = len(sizes), []
    first, taken = 1, sum(sizes[1:])
    for k, nbytes in enumerate(sizes):
        taken += nbytes
        while taken > stream_bytes or first <= k:
            taken -= sizes[first % count]
            first += 1
        gates.append(first - 1)
    return gates


def _streamed(groups: Sequence[GroupCost], cached: Collection[int], stream_bytes: int) -> list[int]:
    places = [index for index in range(len(groups)) if index not in cached]
    largest = max((groups[place].nbytes for place in places), default=0)
    if largest > stream_bytes:
        raise ValueError(f"{stream_bytes} stream bytes are too few for the largest streamed group, {largest} bytes.")
    return places


def step_seconds(
    groups: Sequence[GroupCost], cached: Collection[int], stream_bytes: int, bandwidth: Bandwidth
) -> float:
    """Seconds of a steady step.

    Args:
        groups: costs of all groups, in order of use.
        cached: places of groups that are on the device and are not copied.
        stream_bytes: device memory that the other groups pass through. Each takes its bytes from the start of its copy
            to the end of its computing.

    Raises:
        ValueError: a streamed group is larger than ``stream_bytes``.
    """
    places = _streamed(groups, cached, stream_bytes)
    if not places:
        return sum(group.compute_seconds for group in groups)
    steps = _Steps(groups, places, stream_bytes, bandwidth)
    state = _State([0.0] * len(places), 0.0)
    seconds = 0.0
    for _ in range(MOST_STEPS):
        before, (state, seconds) = state, steps.after(state)
        if state.is_near(before, ROUNDING * seconds):
            break
    return seconds


def copies_ahead(groups: Sequence[GroupCost], cached: Collection[int], stream_bytes: int) -> int:
    """Most streamed groups that are copied ahead of the group that computes."""
    places = _streamed(groups, cached, stream_bytes)
    count = len(places)
    gates = _gates([groups[place].nbytes for place in places], stream_bytes)
    # While cached groups compute, the streamed group after them is ahead as well.
    follows = [(place + 1) % len(groups) in cached for place in places]
    return max((count + k - gate - (not follows[gate % count]) for k, gate in enumerate(gates)), default=0)
