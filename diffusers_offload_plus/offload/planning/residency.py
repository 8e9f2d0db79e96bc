"""Which groups a budget keeps on the device: from an inventory to the planner's numbers and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from ..model.inventory import GroupSpec, Inventory, Residency
from ..model.partition import Unit
from ..model.tensors import plain_tensors
from ..stores.layout import ALIGNMENT
from .search import Frontier, smallest_budget
from .step_time import Bandwidth, GroupCost

__all__ = [
    "ASSUMED_SPEED",
    "Keeper",
    "assumed_costs",
    "fixed_bytes",
    "floor_bytes",
    "keeper_of",
    "least",
    "nested_groups",
    "packed_bytes",
]

ASSUMED_SPEED = Bandwidth(bytes_per_second=20e9, seconds_per_copy=10e-6)
ASSUMED_COMPUTE = 0.25  # of the time a group takes to travel
FEW, STEPS = 64, 128


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


def assumed_costs(sizes: Sequence[int]) -> list[GroupCost]:
    """Groups of these sizes (bytes) that compute for a part of the time they travel: what to assume while nothing is
    measured. Each byte kept is then a gain, and more of one if what is kept is spread over the model."""
    return [GroupCost(nbytes=n, compute_seconds=ASSUMED_COMPUTE * ASSUMED_SPEED.seconds(n)) for n in sizes]


def floor_bytes(sizes: Sequence[int], nests: Sequence[frozenset[int]]) -> int:
    """Device bytes that groups of these sizes need at least: what runs at once, and the largest once more, which
    travels meanwhile or is read by a module that does not own it."""
    if not sizes:
        return 0
    return min(sum(sizes), max(sizes) + smallest_budget(assumed_costs(sizes), nests))


@functools.lru_cache(maxsize=16)
def keeper_of(sizes: tuple[int, ...], nests: tuple[frozenset[int], ...]) -> Keeper:
    """The keeper for groups of these sizes, of which ``nests`` are on the device at once.

    Remembered, for models are looked at anew all the time (LoRA, another dtype and back), and some have twins.
    """
    return Keeper(sizes, nests)


class Keeper:
    """What to keep of groups of some sizes, for any budget; searched once, when it is first asked for."""

    def __init__(self, sizes: Sequence[int], nests: Sequence[frozenset[int]]) -> None:
        self._sizes = sizes
        self._nests = nests
        self._costs = assumed_costs(sizes)
        self._frontier: Frontier | None = None
        self._found: dict[int, tuple[frozenset[int], int]] = {}

    @functools.cached_property
    def floor(self) -> int:
        """See :func:`floor_bytes`."""
        return floor_bytes(self._sizes, self._nests)

    def within(self, budget: int) -> tuple[frozenset[int], int]:
        """Which of the groups stay on the device within ``budget`` bytes, and the room that the others stream through.

        Where not even streaming fits, nothing stays, and the room is all there is: what runs then raises by itself.
        """
        if budget not in self._found:
            self._found[budget] = self._search(budget)
        return self._found[budget]

    def _search(self, budget: int) -> tuple[frozenset[int], int]:
        sizes = self._sizes
        if sum(sizes) <= budget:
            return frozenset(range(len(sizes))), 0
        if not sizes or budget < smallest_budget(self._costs, self._nests):
            return frozenset(), budget
        if self._frontier is None:
            self._frontier = Frontier(self._costs, ASSUMED_SPEED, self._nests)
        choice = self._frontier.best(budget)
        kept = _filled(sizes, choice.kept, budget - choice.device_bytes)
        return kept, budget - sum(sizes[index] for index in kept)

    def least_keeping(self, index: int, above: int) -> int:
        """A budget of more than ``above`` bytes within which group ``index`` stays on the device. One byte less and it
        would stream, though in some smaller one it may stay as well; where there are many groups, one step less, of
        which the whole has :data:`STEPS`."""
        total = sum(self._sizes)
        step = 1 if len(self._sizes) <= FEW else -(-total // STEPS)
        most = max(1, -(-(total - above) // step))
        return above + step * least(lambda steps: index in self.within(above + step * steps)[0], 0, most)


def least(holds: Callable[[int], bool], below: int, above: int) -> int:
    """By halving, a number for which ``holds`` is true, and not for the one before it or that one is ``below``; it is
    true for ``above``."""
    while above - below > 1:
        middle = (below + above) // 2
        if holds(middle):
            above = middle
        else:
            below = middle
    return above


def _filled(sizes: Sequence[int], kept: frozenset[int], left: int) -> frozenset[int]:
    """``kept`` and, while ``left`` bytes allow, more of the groups that no step time speaks for: what stays need not
    travel. Each comes from as far as can be from those already kept, around the end of the step, too: after the last
    group comes the first. Of those equally far the largest is taken."""
    count = len(sizes)
    nbytes, places = np.asarray(sizes, dtype=np.int64), np.arange(count)
    farness = np.full(count, count)
    worth = int(nbytes.max()) + 1

    def take(index: int) -> None:
        apart = np.abs(places - index)
        np.minimum(farness, np.minimum(apart, count - apart), out=farness)

    chosen = set(kept)
    for index in chosen:
        take(index)
    while True:
        fits = (farness > 0) & (nbytes <= left)
        if not fits.any():
            return frozenset(chosen)
        far = int(np.argmax(np.where(fits, farness * worth + nbytes, -1)))
        chosen.add(far)
        left -= sizes[far]
        take(far)


def _ancestry(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
