"""Residency within a budget: which groups are cached on the device between passes, and what others stream through.

[Note: the rule]
Streamed groups pass through the *stream bytes*. That is a double buffer, for the groups that run and the largest
group, which is copied meanwhile, but at least :data:`LEAST_SHARE` of the weights: two small groups would not keep the
copy engine busy. All other memory caches groups. Cached groups are spread evenly over the step, so that they compute
while others are copied: in order of use, a group is cached if the bytes cached so far are behind their share. Bytes
left over are filled with the largest groups that fit, far from other cached groups.

Even spreads differ in where they begin, in how they round, in how many of the largest groups are cached first (which
makes the double buffer smaller), and in which sizes they are of. Some dozens are tried, and the fastest by the step
model is taken. No speeds
are known here, so the model is asked with several ratios of computing to copying. A byte takes one second to copy.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..model.inventory import GroupSpec, Inventory, Residency
from ..model.partition import Unit
from ..model.tensors import plain_tensors
from ..stores.layout import ALIGNMENT
from .step_time import Bandwidth, GroupCost, step_seconds

__all__ = [
    "CacheChoice",
    "choose_cached",
    "evenly_spread",
    "fixed_bytes",
    "floor_bytes",
    "nested_groups",
    "packed_bytes",
]

LEAST_SHARE = 0.02  # of all weights, for stream bytes
LARGEST = 8  # sizes of the largest streamed group that are tried
STARTS = 4  # places around the step where a spread may begin
ROUNDINGS = (0.0, 0.5)  # see ``evenly_spread``
FEW = 100  # groups: each is so large a part of a spread that more are tried
FINE_ROUNDINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
RATIOS = (0.25, 0.5, 1.0)  # compute time of a group to its copy time
ONE_BYTE_A_SECOND = Bandwidth(1.0)


class CacheChoice(NamedTuple):
    """The use of a budget of device memory.

    Attributes:
        cached: places of the groups that are cached on the device between passes.
        stream_bytes: device memory that the other groups pass through.
    """

    cached: frozenset[int]
    stream_bytes: int


def packed_bytes(spec: GroupSpec) -> int:
    """Bytes of a group in one slab. An upper bound: bytes that tensors share count for each of them."""
    return sum(
        -(-t.numel() * t.element_size() // ALIGNMENT) * ALIGNMENT
        for entry in spec.entries
        for _, t in plain_tensors(entry.tensor)
    )


def fixed_bytes(inventory: Inventory) -> int:
    """Device bytes of weights that never leave the device: persistent buffers, and the root's own parameters."""
    resident = sum(packed_bytes(spec) for spec in inventory.groups if spec.residency is Residency.RESIDENT)
    return resident + sum(entry.nbytes for entry in inventory.persistent)


def nested_groups(units: Sequence[Unit], specs: Sequence[GroupSpec]) -> list[frozenset[int]]:
    """Sets of groups that have to be on the device at once because their modules run inside one another.

    Groups are given as places in ``specs``.
    """
    units_at: dict[str, set[int]] = {}
    for index, unit in enumerate(units):
        for name, _ in unit.triggers:
            units_at.setdefault(name, set()).add(index)
    groups_of: dict[int, set[int]] = {}
    for place, spec in enumerate(specs):
        for index in spec.units:
            groups_of.setdefault(index, set()).add(place)
    found: dict[frozenset[int], None] = {}
    for name in units_at:
        active = set().union(*(units_at.get(ancestor, ()) for ancestor in _ancestry(name)))
        found[frozenset().union(*(groups_of.get(index, ()) for index in active))] = None
    return [nest for nest in found if nest]


@functools.lru_cache(maxsize=256)
def floor_bytes(
    sizes: tuple[int, ...], nests: tuple[frozenset[int], ...], cached: frozenset[int] = frozenset()
) -> int:
    """Fewest device bytes with which groups of these sizes can stream, besides those ``cached``: a double buffer.

    It is for the groups that run at once, and for the largest group, which is copied meanwhile or is read by a module
    that does not own it.
    """
    streamed = [nbytes for place, nbytes in enumerate(sizes) if place not in cached]
    at_once = (sum(sizes[place] for place in nest - cached) for nest in nests)
    largest = max(streamed, default=0)
    return min(sum(streamed), largest + max([largest, *at_once]))


@functools.lru_cache(maxsize=256)
def choose_cached(sizes: tuple[int, ...], nests: tuple[frozenset[int], ...], budget: int) -> CacheChoice:
    """The groups to cache within ``budget`` bytes of device memory; see [Note: the rule].

    If the budget is smaller than the double buffer, nothing is cached and all of it is for streaming. A pass that
    needs more then raises.

    Args:
        sizes: bytes of the groups, in order of use.
        nests: sets of groups that are on the device at once, as places in ``sizes``.
    """
    total = sum(sizes)
    if total <= budget:
        return CacheChoice(frozenset(range(len(sizes))), 0)
    if budget < floor_bytes(sizes, nests):
        return CacheChoice(frozenset(), budget)
    choices = [
        CacheChoice(cached, budget - sum(sizes[place] for place in cached))
        for cached in dict.fromkeys(_spreads(sizes, nests, budget))
    ]
    return min(choices, key=lambda choice: (_slowness(sizes, budget, choice), choice.stream_bytes))


def _spreads(sizes: tuple[int, ...], nests: tuple[frozenset[int], ...], budget: int) -> Iterator[frozenset[int]]:
    least = min(int(LEAST_SHARE * sum(sizes)), budget)
    roundings = FINE_ROUNDINGS if len(sizes) <= FEW else ROUNDINGS
    for first, places in _candidates(sizes):
        taken = sum(sizes[place] for place in first)
        cache_bytes = budget - max(least, floor_bytes(sizes, nests, first))
        if taken <= cache_bytes:
            for step, rounding in itertools.product(range(STARTS), roundings):
                start = len(places) * step // STARTS
                chosen = evenly_spread(sizes, places[start:] + places[:start], cache_bytes - taken, rounding)
                yield _filled(sizes, first | chosen, cache_bytes)


def _candidates(sizes: Sequence[int]) -> Iterator[tuple[frozenset[int], list[int]]]:
    """Groups that are cached first, and groups that the rest of the budget is spread over: the largest first and all
    others, or, where groups are few, only those up to some size."""
    largest = sorted(set(sizes), reverse=True)[:LARGEST]
    for size in largest:
        first = frozenset(place for place, nbytes in enumerate(sizes) if nbytes > size)
        yield first, [place for place in range(len(sizes)) if place not in first]
    if len(sizes) <= FEW:
        for size in largest[1:]:
            yield frozenset(), [place for place, nbytes in enumerate(sizes) if nbytes <= size]


def evenly_spread(sizes: Sequence[int], order: Sequence[int], nbytes: int, rounding: float = 0.0) -> set[int]:
    """Places from ``order`` whose groups fit in ``nbytes``, spread evenly over ``order`` by bytes.

    Args:
        rounding: part of a group by which the chosen bytes may be ahead of their share.
    """
    total = sum(sizes[place] for place in order)
    chosen, taken, passed = set(), 0, 0
    for place in order:
        passed += sizes[place]
        fits = taken + sizes[place] <= nbytes
        if fits and (taken + sizes[place] * (1 - rounding)) * total <= nbytes * passed:
            taken += sizes[place]
            chosen.add(place)
    return chosen


def _filled(sizes: Sequence[int], cached: frozenset[int], nbytes: int) -> frozenset[int]:
    """``cached`` and the largest further groups that fit in ``nbytes``. Of equal groups the farthest comes first."""
    left = nbytes - sum(sizes[place] for place in cached)
    count = len(sizes)
    distances = [count] * count  # to the nearest cached group
    for direction in (1, -1):
        apart = count
        for place in [*range(count), *range(count)][::direction]:
            apart = 0 if place in cached else apart + 1
            distances[place] = min(distances[place], apart)
    others = [place for place in range(count) if place not in cached]
    chosen = set(cached)
    for place in sorted(others, key=lambda place: (-sizes[place], -distances[place])):
        if sizes[place] <= left:
            left -= sizes[place]
            chosen.add(place)
    return frozenset(chosen)


def _slowness(sizes: Sequence[int], budget: int, choice: CacheChoice) -> float:
    """Duration of a step over its lower bound, summed over the :data:`RATIOS`."""
    total, slowness = sum(sizes), 0.0
    for ratio in RATIOS:
        costs = [GroupCost(nbytes=nbytes, compute_seconds=ratio * nbytes) for nbytes in sizes]
        seconds = step_seconds(costs, choice.cached, choice.stream_bytes, ONE_BYTE_A_SECOND)
        slowness += seconds / max(ratio * total, total - budget)
    return round(slowness, 6)


def _ancestry(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
