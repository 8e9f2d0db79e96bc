"""Which groups a budget keeps on the device: from an inventory to the planner's numbers and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .inventory import GroupSpec, Inventory, Residency
from .partition import Unit
from .residency import Frontier, smallest_budget
from .step_model import GroupCost, LinkSpeed
from .stores.layout import ALIGNMENT
from .tensors import plain_tensors

__all__ = [
    "ASSUMED_SPEED",
    "Keeper",
    "assumed_costs",
    "fixed_bytes",
    "floor_bytes",
    "keep_within",
    "least",
    "nested_groups",
    "packed_bytes",
]

ASSUMED_SPEED = LinkSpeed(bytes_per_second=20e9, seconds_per_copy=10e-6)
ASSUMED_COMPUTE = 0.25  # of the time a group takes to travel


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
    return resident + sum(entry.nbytes for entry in inventory.carried)


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


def keep_within(sizes: Sequence[int], nests: Sequence[frozenset[int]], budget: int) -> tuple[frozenset[int], int]:
    """Which of the groups of these sizes stay on the device, and the room that the others stream through, in bytes.

    Where not even streaming fits, nothing stays, and the room is all there is: what runs then raises by itself.
    """
    return Keeper(sizes, nests).within(budget)


class Keeper:
    """The choice of :func:`keep_within` for several budgets, searched once."""

    def __init__(self, sizes: Sequence[int], nests: Sequence[frozenset[int]]) -> None:
        self._sizes = sizes
        self._nests = nests
        self.costs = assumed_costs(sizes)
        self._frontier: Frontier | None = None

    def within(self, budget: int) -> tuple[frozenset[int], int]:
        """See :func:`keep_within`."""
        sizes = self._sizes
        if sum(sizes) <= budget:
            return frozenset(range(len(sizes))), 0
        if not sizes or budget < smallest_budget(self.costs, self._nests):
            return frozenset(), budget
        if self._frontier is None:
            self._frontier = Frontier(self.costs, ASSUMED_SPEED, self._nests)
        choice = self._frontier.best(budget)
        kept = _filled(sizes, choice.kept, budget - choice.device_bytes)
        return kept, budget - sum(sizes[index] for index in kept)

    def least_keeping(self, index: int, above: int) -> int:
        """A budget of more than ``above`` bytes within which group ``index`` stays on the device. One byte less and it
        would stream, though in some smaller one it may stay as well."""
        return least(lambda budget: index in self.within(budget)[0], above, max(sum(self._sizes), above + 1))


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
    travel. Each comes from as far as can be from those already kept."""
    chosen = set(kept)
    while fitting := [index for index in range(len(sizes)) if index not in chosen and sizes[index] <= left]:
        far = max(fitting, key=lambda index: (_distance(index, chosen, len(sizes)), sizes[index], -index))
        chosen.add(far)
        left -= sizes[far]
    return frozenset(chosen)


def _distance(index: int, chosen: set[int], count: int) -> int:
    # Around the end of the step, too: after the last group comes the first.
    return min((min((index - other) % count, (other - index) % count) for other in chosen), default=count)


def _ancestry(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
