"""The model of a step: by hand, against a simulator that plays every event, and what must always hold."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_offload_plus.offload.planning.step_time import Bandwidth, GroupCost, simulate_step, stock_step
from tests.support.steps import SLOW, SlowRun, costs, group_lists, links

NONE: frozenset[int] = frozenset()
close = dict(rel=1e-9, abs=1e-9)


@dataclasses.dataclass(frozen=True)
class Case:
    groups: list[GroupCost]
    kept: frozenset[int]
    room: int
    link: Bandwidth
    depth: int | None
    wrap: bool
    settles: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(group_lists())
    kept = draw(st.frozensets(st.integers(0, len(groups) - 1)))
    largest = max((group.nbytes for index, group in enumerate(groups) if index not in kept), default=0)
    return Case(
        groups=groups,
        kept=kept,
        room=largest + draw(st.integers(0, 30)),
        link=draw(links()),
        depth=draw(st.none() | st.integers(0, 4)),
        wrap=draw(st.booleans()),
        settles=draw(st.booleans()),
    )


def simulate(case: Case, **changes: object):
    case = dataclasses.replace(case, **changes)
    settings = dict(depth=case.depth, wrap=case.wrap, settles=case.settles)
    return simulate_step(case.groups, case.kept, case.room, case.link, **settings)


def test_compute_bound() -> None:
    step = simulate_step(costs(*[(2, 5)] * 4), NONE, 4, SLOW)
    assert step.seconds == step.compute_seconds == 20
    assert step.stalls == (0, 0, 0, 0)
    assert (step.streamed_bytes, step.copies, step.peak_bytes) == (8, 4, 4)


def test_transfer_bound() -> None:
    step = simulate_step(costs(*[(5, 2)] * 4), NONE, 10, Bandwidth(1.0, 0.5))
    assert step.seconds == pytest.approx(22)
    assert step.stalls == pytest.approx([3.5] * 4)


def test_all_kept() -> None:
    step = simulate_step(costs((5, 2), (7, 1)), frozenset({0, 1}), 0, SLOW)
    assert (step.seconds, step.streamed_bytes, step.copies, step.peak_bytes) == (3, 0, 0, 0)
    assert step.stalls == (0, 0)


def test_one_slot_overlaps_nothing() -> None:
    step = simulate_step(costs(*[(5, 2)] * 3), NONE, 9, SLOW)
    assert step.seconds == pytest.approx(21)
    assert step.stalls == pytest.approx([5] * 3)
    assert step.peak_bytes == 5


def test_one_slot_is_filled_while_kept_groups_compute() -> None:
    step = simulate_step(costs((5, 2), (9, 4), (5, 2), (9, 4)), frozenset({1, 3}), 5, SLOW)
    assert step.seconds == pytest.approx(14)
    assert step.stalls == pytest.approx([1, 0, 1, 0])


def test_nothing_ahead_means_every_copy_is_waited_for() -> None:
    step = simulate_step(costs(*[(3, 4)] * 3), NONE, 100, SLOW, depth=0)
    assert step.seconds == pytest.approx(21)


def test_a_kept_group_does_not_count_as_ahead() -> None:
    groups = costs((5, 2), (9, 4), (5, 2), (9, 4))
    ahead = simulate_step(groups, frozenset({1, 3}), 10, SLOW, depth=1)
    assert ahead.seconds == pytest.approx(12)


def test_without_wrap_the_first_group_is_waited_for() -> None:
    groups = costs(*[(3, 4)] * 3)
    assert simulate_step(groups, NONE, 100, SLOW).seconds == 12
    step = simulate_step(groups, NONE, 100, SLOW, wrap=False)
    assert step.seconds == pytest.approx(15)
    assert step.stalls == pytest.approx([3, 0, 0])


def test_a_group_larger_than_the_room() -> None:
    with pytest.raises(ValueError, match=r"room of 4 bytes .* 5 bytes"):
        simulate_step(costs((5, 1), (3, 1)), NONE, 4, SLOW)


def test_what_is_under_way_when_a_step_ends_is_waited_for() -> None:
    # The copy of the second group begins when that has left, beside the last group, and takes longer than it: the
    # first could have computed meanwhile.
    groups = costs((9, 4), (5, 2), (9, 4))
    assert simulate_step(groups, frozenset({0, 2}), 5, SLOW).seconds == pytest.approx(10)
    step = simulate_step(groups, frozenset({0, 2}), 5, SLOW, settles=True)
    assert step.seconds == pytest.approx(11)
    assert step.stalls == pytest.approx([0, 1, 0])
    # A copy whose turn comes in the next step alone comes after that as well: 1 + 0.5 + 0.5.
    ahead = simulate_step(costs((0, 1), (0, 0), (0, 0)), frozenset({0}), 0, Bandwidth(1.0, 0.5), depth=1, settles=True)
    assert ahead.seconds == pytest.approx(2)
    # Nor is a copy under way beside a kept last group whose turn comes in the next step, though there is room for it.
    others = costs((0, 0), (0, 1), (1, 0), (0, 0))
    ahead = simulate_step(others, frozenset({3}), 1, Bandwidth(0.25), depth=2, settles=True)
    assert ahead.seconds == pytest.approx(4)
    # With nothing after it, it is not under way when the step ends.
    assert simulate_step(groups[:2], frozenset({0}), 5, SLOW, settles=True).seconds == pytest.approx(7)


def test_stock_by_hand() -> None:
    # 6 waited for, then each copy overlaps one compute: max(3, 4) + max(2, 5) + 1.
    step = stock_step(costs((6, 3), (4, 2), (5, 1)), SLOW)
    assert step.seconds == pytest.approx(6 + 4 + 5 + 1)
    assert step.stalls == pytest.approx([6, 1, 3])
    assert step.peak_bytes == 10
    assert stock_step(costs((6, 3)), SLOW).seconds == pytest.approx(9)
    assert stock_step(costs((6, 3)), SLOW).peak_bytes == 6


@settings(deadline=None)
@given(group_lists(), links())
def test_stock_in_closed_form(groups: list[GroupCost], link: Bandwidth) -> None:
    copies = [link.seconds(group.nbytes) for group in groups]
    seconds = copies[0] + sum(
        max(group.compute_seconds, following) for group, following in zip(groups, [*copies[1:], 0.0], strict=True)
    )
    step = stock_step(groups, link)
    assert step.seconds == pytest.approx(seconds, **close)
    sizes = [group.nbytes for group in groups]
    assert step.peak_bytes <= max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True))


@settings(deadline=None, max_examples=200)
@given(cases())
def test_as_events_played_one_by_one(case: Case) -> None:
    slow = SlowRun(case.groups, case.kept, case.room, case.link, case.depth, case.wrap, case.settles)
    assert simulate(case).seconds == pytest.approx(float(slow.seconds()), **close)
    assert slow.peak <= case.room


@settings(deadline=None, max_examples=150)
@given(cases())
def test_what_always_holds(case: Case) -> None:
    step = simulate(case)
    assert step.seconds >= step.bound(case.link) * (1 - 1e-12)
    assert sum(step.stalls) + step.compute_seconds == pytest.approx(step.seconds, **close)
    assert all(stall == 0 for index, stall in enumerate(step.stalls) if index in case.kept)
    streamed = [group.nbytes for index, group in enumerate(case.groups) if index not in case.kept]
    assert max(streamed, default=0) <= step.peak_bytes <= min(case.room, sum(streamed))
    assert (step.streamed_bytes, step.copies) == (sum(streamed), len(streamed))


@settings(deadline=None, max_examples=150)
@given(cases(), st.integers(0, 20), st.floats(1, 3))
def test_more_of_anything_is_never_slower(case: Case, more: int, factor: float) -> None:
    case = dataclasses.replace(case, settles=False)
    seconds = simulate(case).seconds * (1 + 1e-9) + 1e-9
    faster = Bandwidth(case.link.bytes_per_second * factor, case.link.seconds_per_copy)
    assert simulate(case, link=faster).seconds <= seconds
    assert simulate(case, room=case.room + more).seconds <= seconds
    assert simulate(case, wrap=True).seconds <= seconds
    assert simulate(case, depth=None).seconds <= seconds
    assert simulate(case, depth=(case.depth or 0) + more).seconds <= seconds or case.depth is None


def test_a_run_that_is_nearly_balanced_settles_at_once() -> None:
    # From a cold start, copies gain a millionth a step until they are ten groups ahead.
    groups = costs(*[(1_000_000, 1.0)] * 10)
    link = Bandwidth(1_000_000 * (1 + 1e-7))
    assert simulate_step(groups, NONE, 5_000_000, link).seconds == 10
    assert math.isclose(simulate_step(groups, NONE, 1_000_000, link).seconds, 20, rel_tol=1e-6)
