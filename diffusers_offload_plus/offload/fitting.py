"""Budgets against models: what fits in which cut, and what cannot fit is refused before anything is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import nn

from ..errors import InvalidPolicyError
from .device_budget import least_limit, scratch_bytes
from .inventory import Residency, take_inventory
from .keeping import assumed_costs, fixed_bytes, nested_groups, packed_bytes
from .policy import OffloadPolicy, OffloadType
from .residency import smallest_budget
from .sizes import format_bytes

__all__ = ["Outline", "fit_budgets", "outline_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """One model under one policy, in bytes alone.

    Attributes:
        names, sizes: the groups that can stream, in order.
        nests: places in ``sizes`` of groups that are on the device at once.
        fixed: bytes of what never leaves the device.
        total: bytes of everything.
    """

    policy: OffloadPolicy
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    nests: tuple[frozenset[int], ...]
    fixed: int
    total: int

    @property
    def floor(self) -> int:
        """Bytes that groups need at least: what runs at once, and the largest group once more, which travels meanwhile
        or is read by a module that does not own it."""
        if not self.sizes:
            return 0
        return min(sum(self.sizes), max(self.sizes) + smallest_budget(assumed_costs(self.sizes), self.nests))


def outline_of(root: nn.Module, policy: OffloadPolicy, label: str) -> Outline:
    """Look at every tensor of ``root``; changes nothing, and needs no values."""
    inventory = take_inventory(root, policy, label)
    streamed = [spec for spec in inventory.groups if spec.residency is Residency.STREAMED]
    sizes = tuple(packed_bytes(spec) for spec in streamed)
    return Outline(
        policy=policy,
        names=tuple(spec.name for spec in streamed),
        sizes=sizes,
        nests=tuple(nested_groups(inventory.units, streamed)),
        fixed=fixed_bytes(inventory),
        total=sum(packed_bytes(spec) for spec in inventory.groups) + sum(e.nbytes for e in inventory.carried),
    )


def fit_budgets(
    components: Mapping[str, nn.Module], policies: Mapping[str, OffloadPolicy]
) -> dict[str, OffloadPolicy]:
    """The policies with the cut chosen that fits the budget of device memory.

    Raises:
        InvalidPolicyError: a budget cannot be kept; the message names the largest group and the smallest budget.
    """
    _check_host(components, policies)
    limit = next(iter(policies.values())).vram_budget
    if limit is None:
        return dict(policies)
    outlines = {
        name: [outline_of(module, policy, name) for policy in _cuts(policies[name])]
        for name, module in components.items()
    }
    # What is fixed counts for all components at once, whichever of them works.
    fixed = sum(max(outline.fixed for outline in cuts) for cuts in outlines.values())
    return {name: _fitting(name, cuts, fixed, limit).policy for name, cuts in outlines.items()}


def _cuts(policy: OffloadPolicy) -> list[OffloadPolicy]:
    leaves = dataclasses.replace(policy, offload_type=OffloadType.LEAF_LEVEL)
    return [leaves] if policy.offload_type is OffloadType.LEAF_LEVEL else [policy, leaves]


def _fitting(name: str, cuts: list[Outline], fixed: int, limit: int) -> Outline:
    room = limit - fixed - scratch_bytes(limit)
    for outline in cuts:
        if outline.floor <= room:
            return outline
    finest = min(cuts, key=lambda outline: outline.floor)
    place = max(range(len(finest.sizes)), key=finest.sizes.__getitem__)
    smallest = least_limit(fixed + finest.floor)
    raise InvalidPolicyError(
        f"`vram_budget` is {format_bytes(limit)}, too little for '{name}': its largest group, "
        f"'{finest.names[place]}', takes {format_bytes(finest.sizes[place])}, what is on the device at once "
        f"{format_bytes(finest.floor)}, beside {format_bytes(fixed)} that never leaves the device. "
        f"The smallest budget that works is {smallest} bytes ({format_bytes(smallest)})."
    )


def _check_host(components: Mapping[str, nn.Module], policies: Mapping[str, OffloadPolicy]) -> None:
    first = next(iter(policies.values()))
    if first.host_budget is None or first.disk is not None or first.device.type == "cpu":
        return
    outlines = {name: outline_of(module, policies[name], name) for name, module in components.items()}
    needed = sum(outline.total for outline in outlines.values())
    if needed <= first.host_budget:
        return
    name, outline = max(outlines.items(), key=lambda item: max(item[1].sizes, default=0))
    place = max(range(len(outline.sizes)), key=outline.sizes.__getitem__)
    raise InvalidPolicyError(
        f"`host_budget` is {format_bytes(first.host_budget)}, and the weights, of which the largest group is "
        f"'{name}.{outline.names[place]}' with {format_bytes(outline.sizes[place])}, rest in "
        f"{format_bytes(needed)} of host memory. Give `offload_to_disk_path` for what does not fit, or at least "
        f"{needed} bytes."
    )
