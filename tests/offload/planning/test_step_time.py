"""The step model: by hand, against a simulator that plays every event, and what must always hold."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_offload_plus.offload.planning.step_time import Bandwidth, GroupCost, copies_ahead, step_seconds
from tests.support.steps import SLOW, SlowRun, bandwidths, costs, group_lists, real_groups, stock_seconds

NONE: frozenset[int] = frozenset()
close = dict(rel=1e-9, abs=1e-9)


@dataclasses.dataclass(frozen=True)
class Case:
    groups: list[GroupCost]
    cached: frozenset[int]
    stream_bytes: int
    bandwidth: Bandwidth

    def seconds(self, **changes: Any) -> float:
        """Seconds of its step, or of that of a similar case."""
        case = dataclasses.replace(self, **changes)
        return step_seconds(case.groups, case.cached, case.stream_bytes, case.bandwidth)

    @property
    def bound(self) -> float:
        """All computing, or all copying."""
        copies = [self.bandwidth.seconds(g.nbytes) for index, g in enumerate(self.groups) if index not in self.cached]
        return max(sum(group.compute_seconds for group in self.groups), sum(copies))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(group_lists())
    cached = draw(st.frozensets(st.integers(0, len(groups) - 1)))
    largest = max((group.nbytes for index, group in enumerate(groups) if index not in cached), default=0)
    return Case(groups, cached, largest + draw(st.integers(0, 30)), draw(bandwidths()))


def test_compute_bound() -> None:
    assert step_seconds(costs(*[(2, 5)] * 4), NONE, 4, SLOW) == 20


def test_transfer_bound() -> None:
    assert step_seconds(costs(*[(5, 2)] * 4), NONE, 10, Bandwidth(1.0, 0.5)) == pytest.approx(22)


def test_all_cached() -> None:
    assert step_seconds(costs((5, 2), (7, 1)), frozenset({0, 1}), 0, SLOW) == 3
    assert step_seconds([], NONE, 0, SLOW) == 0


def test_stream_bytes_of_one_group_overlap_nothing() -> None:
    assert step_seconds(costs(*[(5, 2)] * 3), NONE, 9, SLOW) == pytest.approx(21)


def test_stream_bytes_of_one_group_are_filled_while_cached_groups_compute() -> None:
    assert step_seconds(costs((5, 2), (9, 4), (5, 2), (9, 4)), frozenset({1, 3}), 5, SLOW) == pytest.approx(14)


def test_a_group_larger_than_the_stream_bytes() -> None:
    with pytest.raises(ValueError, match=r"4 stream bytes .* 5 bytes"):
        step_seconds(costs((5, 1), (3, 1)), NONE, 4, SLOW)


def test_a_copy_goes_on_into_the_next_step() -> None:
    # The copy of the second group begins when that has left, beside the last group, and takes longer than it: the
    # first computes meanwhile.
    groups = costs((9, 4), (5, 2), (9, 4))
    assert step_seconds(groups, frozenset({0, 2}), 5, SLOW) == pytest.approx(10)
    assert step_seconds(groups[:2], frozenset({0}), 5, SLOW) == pytest.approx(7)


def test_copies_ahead() -> None:
    groups = costs(*[(5, 2)] * 6)
    assert copies_ahead(groups, NONE, 5) == 0
    assert copies_ahead(groups, NONE, 14) == 1
    assert copies_ahead(groups, NONE, 15) == 2
    assert copies_ahead(groups, frozenset({1, 3, 5}), 5) == 1, "while a cached group computes"
    assert copies_ahead(groups, frozenset(range(6)), 0) == 0
    assert copies_ahead([], NONE, 0) == 0


def test_stock_by_hand() -> None:
    # 6 waited for, then each copy overlaps one compute: max(3, 4) + max(2, 5) + 1.
    assert stock_seconds(costs((6, 3), (4, 2), (5, 1)), SLOW) == 6 + 4 + 5 + 1
    assert stock_seconds(costs((6, 3)), SLOW) == 9


@settings(deadline=None, max_examples=300)
@given(cases())
def test_as_events_played_one_by_one(case: Case) -> None:
    slow = SlowRun(case.groups, case.cached, case.stream_bytes, case.bandwidth)
    assert case.seconds() == pytest.approx(float(slow.seconds()), **close)
    assert slow.peak <= case.stream_bytes


@settings(deadline=None, max_examples=150)
@given(cases(), st.integers(0, 20), st.floats(1, 3))
def test_what_always_holds(case: Case, more: int, factor: float) -> None:
    seconds = case.seconds()
    assert seconds >= case.bound * (1 - 1e-12)
    faster = Bandwidth(case.bandwidth.bytes_per_second * factor, case.bandwidth.seconds_per_copy)
    assert case.seconds(bandwidth=faster) <= seconds * (1 + 1e-9) + 1e-9
    ahead = copies_ahead(case.groups, case.cached, case.stream_bytes)
    assert ahead <= copies_ahead(case.groups, case.cached, case.stream_bytes + more)
    assert ahead <= len(case.groups) - len(case.cached)


def test_speeds_that_are_nearly_equal() -> None:
    # From a cold start, copies gain a millionth a step until they are ten groups ahead.
    groups = costs(*[(1_000_000, 1.0)] * 10)
    bandwidth = Bandwidth(1_000_000 * (1 + 1e-7))
    assert step_seconds(groups, NONE, 5_000_000, bandwidth) == pytest.approx(10, rel=1e-6)
    assert step_seconds(groups, NONE, 1_000_000, bandwidth) == pytest.approx(20, rel=1e-6)


def test_a_thousand_groups_take_milliseconds() -> None:
    groups, bandwidth = real_groups(random.Random(1), 1000)
    start = time.process_time()
    step_seconds(groups, frozenset(range(0, 1000, 3)), 3000, bandwidth)
    assert time.process_time() - start < 0.25
