"""The rule of residency: never too much, close to the best there is, and more memory is never slower."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_offload_plus.offload.planning.residency import (
    LEAST_SHARE,
    ONE_BYTE_A_SECOND,
    RATIOS,
    ROUNDINGS,
    _filled,
    choose_cached,
    evenly_spread,
    floor_bytes,
)
from diffusers_offload_plus.offload.planning.step_time import GroupCost, step_seconds
from tests.support.steps import SHAPES, real_groups

Sizes = tuple[int, ...]
Nests = tuple[frozenset[int], ...]

size_lists = st.lists(st.integers(0, 12), min_size=1, max_size=12).map(tuple)
CUTS = {name: tuple(group.nbytes for group in groups) for name, groups in SHAPES.items()}
# As the layers of transformer blocks: some large, some small.
CUTS["layers"] = tuple(n * 10**6 for _ in range(40) for n in (25, 25, 25, 25, 100, 100, 1))


@st.composite
def nested(draw: st.DrawFn) -> tuple[Sizes, Nests]:
    sizes = draw(size_lists)
    return sizes, tuple(draw(st.lists(st.frozensets(st.integers(0, len(sizes) - 1), max_size=3), max_size=3)))


def bytes_of(sizes: Sizes, places: frozenset[int] | set[int]) -> int:
    return sum(sizes[place] for place in places)


def seconds_of(sizes: Sizes, cached: frozenset[int], stream_bytes: int, ratio: float) -> float:
    """Of a step in which a byte takes a second to copy, and groups compute for ``ratio`` of that."""
    groups = [GroupCost(nbytes=nbytes, compute_seconds=ratio * nbytes) for nbytes in sizes]
    return step_seconds(groups, cached, stream_bytes, ONE_BYTE_A_SECOND)


def slowness(sizes: Sizes, budget: int, cached: frozenset[int], stream_bytes: int) -> float:
    """Seconds of a step to those of its bound, mean over the ratios that the rule looks at."""
    bounds = [max(ratio * sum(sizes), sum(sizes) - budget) for ratio in RATIOS]
    steps = [seconds_of(sizes, cached, stream_bytes, ratio) for ratio in RATIOS]
    return sum(step / bound for step, bound in zip(steps, bounds, strict=True)) / len(RATIOS)


@settings(deadline=None, max_examples=200)
@given(nested(), st.integers(0, 160))
def test_never_over_budget(case: tuple[Sizes, Nests], budget: int) -> None:
    sizes, nests = case
    cached, stream_bytes = choose_cached(sizes, nests, budget)
    assert cached <= frozenset(range(len(sizes)))
    if len(cached) == len(sizes):
        assert stream_bytes == 0
        assert bytes_of(sizes, cached) <= budget
    else:
        assert bytes_of(sizes, cached) + stream_bytes == budget


@settings(deadline=None, max_examples=200)
@given(nested(), st.integers(0, 100))
def test_what_streams_has_a_double_buffer(case: tuple[Sizes, Nests], more: int) -> None:
    sizes, nests = case
    cached, stream_bytes = choose_cached(sizes, nests, floor_bytes(sizes, nests) + more)
    streamed = frozenset(range(len(sizes))) - cached
    largest = max((sizes[place] for place in streamed), default=0)
    for nest in [*nests, *map(frozenset, zip(range(len(sizes)), strict=True))]:
        at_once = bytes_of(sizes, nest - cached)
        assert stream_bytes >= min(at_once + largest, bytes_of(sizes, streamed))


@given(nested())
def test_all_is_cached_that_fits(case: tuple[Sizes, Nests]) -> None:
    sizes, nests = case
    assert choose_cached(sizes, nests, sum(sizes)) == (frozenset(range(len(sizes))), 0)
    if floor_bytes(sizes, nests) < sum(sizes):
        assert len(choose_cached(sizes, nests, sum(sizes) - 1).cached) < len(sizes)


def test_below_the_double_buffer_nothing_is_cached() -> None:
    assert floor_bytes((5, 3, 4), ()) == 10
    assert floor_bytes((5, 3, 4), (frozenset({1, 2}),)) == 12
    assert floor_bytes((5, 3, 4, 9), (frozenset({1, 2}),), frozenset({3})) == 12
    assert floor_bytes((5, 3), ()) == 8, "no more than all of them"
    assert choose_cached((5, 3, 4), (), 9) == (frozenset(), 9)
    assert choose_cached((5, 3, 4, 1), (), 11).cached == {3}
    assert choose_cached((), (), 0) == (frozenset(), 0)


def test_one_group_that_is_much_larger_is_cached() -> None:
    cached, stream_bytes = choose_cached((50, *[4] * 20), (), 105)
    assert 0 in cached
    assert 8 <= stream_bytes < 12


def budgets(sizes: Sizes, parts: int = 60) -> Iterator[int]:
    floor, total = floor_bytes(sizes, ()), sum(sizes)
    yield from (floor + (total - floor) * part // parts for part in range(parts + 1))


@pytest.mark.parametrize("name", CUTS)
def test_no_more_is_held_back_than_keeps_copies_going(name: str) -> None:
    """A double buffer, a share of the weights, and less than one group that fits nowhere."""
    sizes = CUTS[name]
    for budget in budgets(sizes):
        cached, stream_bytes = choose_cached(sizes, (), budget)
        smallest = min((sizes[place] for place in range(len(sizes)) if place not in cached), default=0)
        assert stream_bytes < max(floor_bytes(sizes, ()), LEAST_SHARE * sum(sizes)) + max(1, smallest)


@pytest.mark.parametrize("name", CUTS)
def test_more_memory_caches_more(name: str) -> None:
    sizes = CUTS[name]
    largest = max(sizes)
    cached = [bytes_of(sizes, choose_cached(sizes, (), budget).cached) for budget in budgets(sizes)]
    for fewer, more in itertools.pairwise(cached):
        assert more >= fewer - largest
    for few, many in zip(cached, cached[10:], strict=False):
        assert many > few


@pytest.mark.parametrize("name", CUTS)
def test_steps_come_near_the_bound_and_more_memory_is_never_slower(name: str) -> None:
    """The bound: all computing, or all copying of what streams. At one speed of computing or another a step may be
    slower by a little, over all of them it is not."""
    sizes = CUTS[name]
    total, fastest = sum(sizes), [float("inf")] * (len(RATIOS) + 1)
    held_back = max(floor_bytes(sizes, ()), LEAST_SHARE * total)
    for budget in budgets(sizes):
        cached, stream_bytes = choose_cached(sizes, (), budget)
        copying = total - bytes_of(sizes, cached)
        assert copying <= max(total - budget + held_back + max(sizes), 0)
        steps = [seconds_of(sizes, cached, stream_bytes, ratio) for ratio in RATIOS]
        for ratio, seconds in zip(RATIOS, steps, strict=True):
            near = 1.06 if budget >= 2 * LEAST_SHARE * total else 1.1
            assert seconds <= max(ratio * total, copying) * near
        for place, (seconds, slack) in enumerate(
            zip([*steps, sum(steps)], [1.06] * len(RATIOS) + [1.02], strict=True)
        ):
            assert seconds <= fastest[place] * slack
            fastest[place] = min(fastest[place], seconds)


def best_of_all(sizes: Sizes, budget: int) -> float:
    """The least slowness of any set that leaves a double buffer."""
    found = []
    for count in range(len(sizes) + 1):
        for cached in map(frozenset, itertools.combinations(range(len(sizes)), count)):
            left = budget - bytes_of(sizes, cached)
            if left >= floor_bytes(sizes, (), cached):
                found.append(slowness(sizes, budget, cached, left))
    return min(found)


def gap(sizes: Sizes, budget: int) -> float:
    """How much slower the rule is than the best there is."""
    return slowness(sizes, budget, *choose_cached(sizes, (), budget)) / best_of_all(sizes, budget)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 9), st.integers(0, 9), st.integers(1, 30), st.floats(0, 0.95))
def test_equal_blocks_of_two_kinds_by_brute_force(doubles: int, singles: int, size: int, part: float) -> None:
    sizes = (24,) * doubles + (size,) * (min(9 - doubles, singles))
    floor, total = floor_bytes(sizes, ()), sum(sizes)
    assert gap(sizes, floor + int(part * (total - floor - 1))) <= 1.06


def test_groups_of_any_sizes_by_brute_force() -> None:
    gaps = []
    for seed in range(15):
        groups, _ = real_groups(random.Random(seed), 4 + seed % 6)
        sizes = tuple(group.nbytes for group in groups)
        gaps += [gap(sizes, budget) for budget in budgets(sizes, 6) if budget < sum(sizes)]
    assert sum(gaps) / len(gaps) <= 1.01
    assert sorted(gaps)[int(0.95 * len(gaps))] <= 1.06


@given(size_lists, st.integers(0, 150), st.sampled_from(ROUNDINGS))
def test_a_spread_is_even(sizes: Sizes, nbytes: int, rounding: float) -> None:
    """Up to each place the chosen bytes are their share, but for a group."""
    order = list(range(len(sizes)))
    chosen, total, nbytes = evenly_spread(sizes, order, nbytes, rounding), sum(sizes), min(nbytes, sum(sizes))
    for end in order:
        held = sum(sizes[place] for place in order[: end + 1] if place in chosen)
        share = nbytes * sum(sizes[: end + 1]) / max(total, 1)
        assert abs(share - held) <= max(sizes)
        assert held <= nbytes


@given(size_lists, st.sets(st.integers(0, 11)), st.integers(0, 150))
def test_what_is_left_over_is_filled(sizes: Sizes, among: set[int], nbytes: int) -> None:
    cached = frozenset(place for place in among if place < len(sizes))
    filled = _filled(sizes, cached, nbytes)
    assert cached <= filled
    left = nbytes - bytes_of(sizes, filled)
    assert left >= 0 or filled == cached | {place for place in filled if sizes[place] == 0}
    assert all(sizes[place] > left for place in range(len(sizes)) if place not in filled)


def test_what_fills_comes_from_far() -> None:
    assert _filled((4,) * 9, frozenset({0}), 8) in ({0, 4}, {0, 5})
    assert _filled((4, 4, 4, 4, 6, 4, 4, 4), frozenset({5}), 10) == {4, 5}, "the largest first"


@pytest.mark.parametrize(("count", "seconds"), [(60, 0.02), (1000, 0.1)])
def test_takes_no_time(count: int, seconds: float) -> None:
    groups, _ = real_groups(random.Random(1), count)
    sizes = tuple(group.nbytes for group in groups)
    start = time.process_time()
    choose_cached(sizes, (), sum(sizes) // 3)
    # Several times what it takes on an idle machine.
    assert time.process_time() - start < 5 * seconds
