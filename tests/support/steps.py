"""Steps to model: strategies, shapes of well-known models, and a slow simulator to compare with."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from fractions import Fraction

from hypothesis import strategies as st

from diffusers_offload_plus.offload.planning.step_time import Bandwidth, GroupCost

SLOW = Bandwidth(1.0)


def costs(*pairs: tuple[int, float]) -> list[GroupCost]:
    """Groups of these bytes and seconds."""
    return [GroupCost(nbytes=nbytes, compute_seconds=seconds) for nbytes, seconds in pairs]


MEGABYTE = 10**6
# Bytes and seconds of blocks about as in well-known models.
SHAPES = {
    "flux": costs(*[(680 * MEGABYTE, 0.012)] * 19, *[(283 * MEGABYTE, 0.007)] * 38),
    "wan": costs(*[(700 * MEGABYTE, 0.2)] * 40),
    "fast wan": costs((50 * MEGABYTE, 0.001), *[(700 * MEGABYTE, 0.02)] * 40, (10 * MEGABYTE, 0.001)),
}


def group_lists(max_size: int = 8, largest: int = 12) -> st.SearchStrategy[list[GroupCost]]:
    """Whole numbers, so that the slow simulator is exact."""
    pair = st.tuples(st.integers(0, largest), st.integers(0, largest))
    return st.lists(pair, min_size=1, max_size=max_size).map(lambda pairs: costs(*pairs))


def bandwidths() -> st.SearchStrategy[Bandwidth]:
    return st.builds(Bandwidth, st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 0.5, 3.0]))


def real_groups(rng: random.Random, count: int) -> tuple[list[GroupCost], Bandwidth]:
    """Groups of any sizes and compute times, and copies about as fast as they compute."""
    groups = costs(*[(rng.randint(1, 1000), rng.uniform(0, 10)) for _ in range(count)])
    balanced = sum(group.nbytes for group in groups) / sum(group.compute_seconds for group in groups)
    return groups, Bandwidth(balanced * 10 ** rng.uniform(-1, 0.5), rng.choice([0.0, 0.1]))


def stock_seconds(groups: Sequence[GroupCost], bandwidth: Bandwidth) -> float:
    """A step of diffusers' own group offloading with streams: nothing is cached, one group is copied ahead while
    another computes, and the first group of each step is waited for in full."""
    copies = [bandwidth.seconds(group.nbytes) for group in groups]
    computing = [group.compute_seconds for group in groups]
    return copies[0] + sum(map(max, computing, [*copies[1:], 0.0]))


@dataclasses.dataclass
class SlowRun:
    """Events one by one, from a cold start, in exact numbers, until the state at the start of a step repeats."""

    groups: list[GroupCost]
    cached: frozenset[int]
    stream_bytes: int
    bandwidth: Bandwidth
    peak: int = 0

    def seconds(self) -> Fraction:
        """Mean over the steps of a period."""
        count = len(self.groups)
        if len(self.cached) == count:
            return sum((Fraction(group.compute_seconds) for group in self.groups), Fraction(0))
        now = Fraction(0)
        computing, copying = 0, self._next_streamed(-1)  # uses, counted over all steps
        busy_until: Fraction | None = None  # the compute under way
        copied_at: Fraction | None = None  # the copy under way
        held: list[int] = []  # uses whose bytes are on the device
        arrived: set[int] = set()
        seen: dict[object, tuple[int, Fraction]] = {}
        while True:
            progress = True
            while progress:
                progress = False
                if copied_at is not None and copied_at <= now:
                    arrived.add(copying)
                    copied_at, copying, progress = None, self._next_streamed(copying), True
                if busy_until is not None and busy_until <= now:
                    held = [use for use in held if use != computing]
                    arrived.discard(computing)
                    busy_until, computing, progress = None, computing + 1, True
                    if computing % count == 0:
                        ahead = tuple(use - computing for use in held)
                        left = None if copied_at is None else copied_at - now
                        state = ahead, copying - computing, left, tuple(sorted(use - computing for use in arrived))
                        step = computing // count
                        if state in seen:
                            past, moment = seen[state]
                            return (now - moment) / (step - past)
                        seen[state] = step, now
                if busy_until is None and (computing % count in self.cached or computing in arrived):
                    busy_until = now + Fraction(self.groups[computing % count].compute_seconds)
                    progress = True
                if copied_at is None and self._may_copy(copying, held):
                    held.append(copying)
                    self.peak = max(self.peak, self._bytes(held))
                    nbytes = self.groups[copying % count].nbytes
                    copied_at = now + Fraction(self.bandwidth.seconds_per_copy)
                    copied_at += Fraction(nbytes) / Fraction(self.bandwidth.bytes_per_second)
                    progress = True
            now = min(moment for moment in (busy_until, copied_at) if moment is not None)

    def _next_streamed(self, use: int) -> int:
        use += 1
        while use % len(self.groups) in self.cached:
            use += 1
        return use

    def _bytes(self, uses: list[int]) -> int:
        return sum(self.groups[use % len(self.groups)].nbytes for use in uses)

    def _may_copy(self, copying: int, held: list[int]) -> bool:
        count = len(self.groups)
        if copying - count in held:
            return False
        return self._bytes(held) + self.groups[copying % count].nbytes <= self.stream_bytes
