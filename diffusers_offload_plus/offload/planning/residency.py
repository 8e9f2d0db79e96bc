"""Residency within a budget: which groups are cached on the device between passes, and what the others stream through.

[Note: the rule]
Streaming needs a double buffer: what runs, and beside it the largest group, which is on its way. Where groups are so
small that two of them keep the copy engine busy for moments only, :data:`LEAST_SHARE` of the weights is held back. All
other memory caches groups. They are spread evenly, so that cached groups compute while others travel: in order of use,
a group is cached as soon as the bytes cached so far are behind their share. Bytes left over are filled with the
largest groups that fit, far from what is cached.

Even spreads differ in where they begin, in how they round, and in how many of the largest groups are cached first,
which makes the double buffer smaller. Of some of them the one is taken that the step model finds fastest. No speeds
are known here, so it tries several ratios of computing to copying; a byte takes one second to copy.
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

LEAST_SHARE = 0.02
LARGEST = 8  # sizes of the largest streamed group that are tried
STARTS = 4  # places around the step where a spread may begin
ROUNDINGS = (0.0, 0.5)
RATIOS = (0.25, 0.5, 1.0)  # seconds that a group computes to those that it travels
ONE_BYTE_A_SECOND = Bandwidth(1.0)


class CacheChoice(NamedTuple):
    """What a budget of device memory is used for.

    Attributes:
        cached: places of the groups that stay on the device between passes.
        stream_bytes: device memory that the others pass through.
    """

    cached: frozenset[int]
    stream_bytes: int


def packed_bytes(spec: GroupSpec) -> int:
    """Bytes of a group laid out in one slab; an upper bound, for what tensors share counts once for each."""
    return sum(
        -(-t.numel() * t.element_size() // ALIGNMENT) * ALIGNMENT
        for entry in spec.entries
        for _, t in plain_tensors(entry.tensor)
    )


def fixed_bytes(inventory: Inventory) -> int:
    """Device bytes of what never leaves the device: buffers, and the root's own parameters."""
    resident = sum(packed_bytes(spec) for spec in inventory.groups if spec.residency is Residency.RESIDENT)
    return resident + sum(entry.nbytes for entry in inventory.persistent)


def nested_groups(units: Sequence[Unit], specs: Sequence[GroupSpec]) -> list[frozenset[int]]:
    """Which of the groups have to be on the device at once, because modules run inside one another; each set given by
    places in ``specs``."""
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
    """Device bytes that groups of these sizes need beside those ``cached``: a double buffer, of what runs at once and
    the largest group, which travels meanwhile or is read by a module that does not own it."""
    streamed = [nbytes for place, nbytes in enumerate(sizes) if place not in cached]
    at_once = (sum(sizes[place] for place in nest - cached) for nest in nests)
    largest = max(streamed, default=0)
    return min(sum(streamed), largest + max([largest, *at_once]))


@functools.lru_cache(maxsize=256)
def choose_cached(sizes: tuple[int, ...], nests: tuple[frozenset[int], ...], budget: int) -> CacheChoice:
    """The groups to cache within ``budget`` bytes of device memory; see [Note: the rule].

    Where the budget is below the double buffer nothing is cached, and all of it is for streaming: what is too large
    raises by itself.

    Args:
        sizes: bytes of the groups, in order of use.
        nests: places of groups that are on the device at once, since their modules run inside one another.
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
    for largest in sorted(set(sizes), reverse=True)[:LARGEST]:
        first = frozenset(place for place, nbytes in enumerate(sizes) if nbytes > largest)
        held = sum(sizes[place] for place in first)
        cache_bytes = budget - max(least, floor_bytes(sizes, nests, first))
        if held <= cache_bytes:
            places = [place for place in range(len(sizes)) if place not in first]
            for step, rounding in itertools.product(range(STARTS), ROUNDINGS):
                start = len(places) * step // STARTS
                chosen = evenly_spread(sizes, places[start:] + places[:start], cache_bytes - held, rounding)
                yield _filled(sizes, first | chosen, cache_bytes)


def evenly_spread(sizes: Sequence[int], order: Sequence[int], nbytes: int, rounding: float = 0.0) -> set[int]:
    """Of the places in ``order`` as many as ``nbytes`` hold, spread evenly over it by bytes.

    Args:
        rounding: part of a group that may be ahead of its share.
    """
    total = sum(sizes[place] for place in order)
    chosen, held, passed = set(), 0, 0
    for place in order:
        passed += sizes[place]
        fits = held + sizes[place] <= nbytes
        if fits and (held + sizes[place] * (1 - rounding)) * total <= nbytes * passed:
            held += sizes[place]
            chosen.add(place)
    return chosen


def _filled(sizes: Sequence[int], cached: frozenset[int], nbytes: int) -> frozenset[int]:
    """``cached`` and the largest groups that fit beside it in ``nbytes``; of equals the one farthest from it."""
    left = nbytes - sum(sizes[place] for place in cached)
    count = len(sizes)
    farness = [count] * count
    for direction in (1, -1):
        apart = count
        for place in [*range(count), *range(count)][::direction]:
            apart = 0 if place in cached else apart + 1
            farness[place] = min(farness[place], apart)
    rest = [place for place in range(count) if place not in cached]
    chosen = set(cached)
    for place in sorted(rest, key=lambda place: (-sizes[place], -farness[place])):
        if sizes[place] <= left:
            left -= sizes[place]
            chosen.add(place)
    return frozenset(chosen)


def _slowness(sizes: Sequence[int], budget: int, choice: CacheChoice) -> float:
    """Seconds of a step to those of its bound, summed over the :data:`RATIOS`."""
    total, slowness = sum(sizes), 0.0
    for ratio in RATIOS:
        costs = [GroupCost(nbytes=nbytes, compute_seconds=ratio * nbytes) for nbytes in sizes]
        seconds = step_seconds(costs, choice.cached, choice.stream_bytes, ONE_BYTE_A_SECOND)
        slowness += seconds / max(ratio * total, total - budget)
    return round(slowness, 6)


def _ancestry(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
