"""The cut of each model that fits the budgets: blocks or layers. Budgets that nothing fits are refused.

[Note: blocks or layers]
The bytes of the double buffer are not available for caching. So a model is cut into blocks only if it fits as a whole,
or if the double buffer of its blocks takes at most a sixteenth of the budget. Else it is cut into layers, whose double
buffer is smaller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NoReturn

from torch import nn

from ...errors import InvalidPolicyError
from ..formatting import format_bytes
from ..memory.auto_limit import DeviceMemory
from ..memory.device_budget import least_limit, scratch_bytes
from ..model.inventory import Residency, take_inventory
from ..policy import AUTO, OffloadPolicy, OffloadType
from .residency import fixed_bytes, floor_bytes, nested_groups, packed_bytes

__all__ = [
    "SizeSummary",
    "check_host",
    "fit_budgets",
    "fit_summaries",
    "size_summaries",
    "size_summary",
    "streams_well",
]

LARGEST_SHARE = 1 / 16  # of a budget that a double buffer of blocks may take


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeSummary:
    """The sizes of the groups of one model under one policy, in bytes.

    Attributes:
        names, sizes: names and sizes of the groups that can stream, in the order of the model.
        nests: sets of groups that have to be on the device at once, as places in ``sizes``.
        fixed: bytes of weights that never leave the device.
        total: bytes of all weights.
    """

    policy: OffloadPolicy
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    nests: tuple[frozenset[int], ...]
    fixed: int
    total: int

    @property
    def floor(self) -> int:
        """Fewest device bytes with which the groups can stream."""
        return floor_bytes(self.sizes, self.nests)

    def suits(self, nbytes: int) -> bool:
        """Whether this cut is good for ``nbytes`` of device memory; see [Note: blocks or layers]."""
        return streams_well(sum(self.sizes), self.floor, nbytes)


def size_summary(root: nn.Module, policy: OffloadPolicy, label: str, *, values: bool = True) -> SizeSummary:
    """The size summary of ``root`` under ``policy``. Changes nothing. For ``values`` see :func:`take_inventory`."""
    inventory = take_inventory(root, policy, label, values=values)
    streamed = [spec for spec in inventory.groups if spec.residency is Residency.STREAMED]
    sizes = tuple(packed_bytes(spec) for spec in streamed)
    return SizeSummary(
        policy=policy,
        names=tuple(spec.name for spec in streamed),
        sizes=sizes,
        nests=tuple(nested_groups(inventory.units, streamed)),
        fixed=fixed_bytes(inventory),
        total=sum(packed_bytes(spec) for spec in inventory.groups) + sum(e.nbytes for e in inventory.persistent),
    )


def size_summaries(
    components: Mapping[str, nn.Module], policies: Mapping[str, OffloadPolicy], *, values: bool = True
) -> dict[str, list[SizeSummary]]:
    """For each component the size summaries of the cuts that may be chosen. The cut asked for comes first."""
    return {
        name: [size_summary(module, policy, name, values=values) for policy in _cuts(policies[name])]
        for name, module in components.items()
    }


def fit_budgets(
    components: Mapping[str, nn.Module], policies: Mapping[str, OffloadPolicy]
) -> tuple[dict[str, OffloadPolicy], int | None]:
    """The policies with the cut that fits the budget of device memory, and the first limit of that budget.

    The limit is the budget; the device's memory for ``"auto"``; None without a budget.

    Raises:
        InvalidPolicyError: a budget is too small. The message names the largest group and the smallest budget that
            works.
    """
    first = next(iter(policies.values()))
    if first.vram_budget is None and not _bounds_host(first):
        return dict(policies), None
    summaries = size_summaries(components, policies)
    check_host(summaries)
    if first.vram_budget is None:
        return dict(policies), None
    if first.vram_budget is AUTO:
        limit = DeviceMemory(first.device).capacity()
        chosen = _fit_free_memory(summaries, limit)
    else:
        chosen, limit = fit_summaries(summaries, first.vram_budget), first.vram_budget
    return {name: summary.policy for name, summary in chosen.items()}, limit


def _fit_free_memory(summaries: Mapping[str, list[SizeSummary]], capacity: int) -> dict[str, SizeSummary]:
    # The memory that passes take besides weights is not known yet. Half of all memory is left for it if a cut allows.
    try:
        return fit_summaries(summaries, capacity // 2)
    except InvalidPolicyError:
        return fit_summaries(summaries, capacity, asked="`vram_budget` is 'auto', and the device has")


def fit_summaries(
    summaries: Mapping[str, list[SizeSummary]], limit: int, *, asked: str = "`vram_budget` is"
) -> dict[str, SizeSummary]:
    """For each component the first cut that is good for ``limit`` bytes of device memory, else the last that fits.

    Args:
        asked: beginning of the error message.

    Raises:
        InvalidPolicyError: no cut of a component fits; see :func:`fit_budgets`.
    """
    # Weights that never leave the device count for all components at once, whichever of them runs.
    fixed = sum(max(summary.fixed for summary in cuts) for cuts in summaries.values())
    left = limit - fixed - scratch_bytes(limit)
    fitting = {name: [cut for cut in cuts if cut.floor <= left] for name, cuts in summaries.items()}
    if not all(fitting.values()):
        _refuse(summaries, fixed, limit, asked)
    return {name: next((cut for cut in cuts if cut.suits(left)), cuts[-1]) for name, cuts in fitting.items()}


def streams_well(total: int, floor: int, nbytes: int) -> bool:
    """Whether a cut is good for ``nbytes`` of device memory; see [Note: blocks or layers].

    Args:
        total: bytes of all groups of the cut.
        floor: fewest bytes with which they can stream.
    """
    return total <= nbytes or floor <= LARGEST_SHARE * nbytes


def _cuts(policy: OffloadPolicy) -> list[OffloadPolicy]:
    leaves = dataclasses.replace(policy, offload_type=OffloadType.LEAF_LEVEL)
    return [leaves] if policy.offload_type is OffloadType.LEAF_LEVEL else [policy, leaves]


def _refuse(summaries: Mapping[str, list[SizeSummary]], fixed: int, limit: int, asked: str) -> NoReturn:
    # The component that needs most, so that the budget in the message works for all of them.
    name, finest = max(
        ((name, min(cuts, key=lambda summary: summary.floor)) for name, cuts in summaries.items()),
        key=lambda item: item[1].floor,
    )
    smallest = least_limit(fixed + finest.floor)
    largest = ""
    if finest.sizes:
        place = max(range(len(finest.sizes)), key=finest.sizes.__getitem__)
        largest = f"its largest group, '{finest.names[place]}', takes {format_bytes(finest.sizes[place])}, "
    raise InvalidPolicyError(
        f"{asked} {format_bytes(limit)}, too little for '{name}': {largest}the groups that are on the device at once "
        f"take {format_bytes(finest.floor)}, besides {format_bytes(fixed)} that never leaves the device. "
        f"The smallest budget that works is {smallest} bytes ({format_bytes(smallest)})."
    )


def _bounds_host(policy: OffloadPolicy) -> bool:
    # With a disk tier the rest is stored on disk, and a CPU that computes uses the weights where they are.
    return policy.host_budget is not None and policy.disk is None and policy.onload_device.type != "cpu"


def check_host(summaries: Mapping[str, list[SizeSummary]]) -> None:
    """Check that the weights fit in the budget of host memory, where no disk tier takes the rest.

    Raises:
        InvalidPolicyError: they do not fit.
    """
    asked = {name: cuts[0] for name, cuts in summaries.items()}
    first = next(iter(asked.values())).policy
    needed = sum(summary.total for summary in asked.values())
    if first.host_budget is None or not _bounds_host(first) or needed <= first.host_budget:
        return
    name, summary = max(asked.items(), key=lambda item: max(item[1].sizes, default=0))
    largest = ""
    if summary.sizes:
        place = max(range(len(summary.sizes)), key=summary.sizes.__getitem__)
        largest = (
            f", of which the largest group is '{name}.{summary.names[place]}' with "
            f"{format_bytes(summary.sizes[place])},"
        )
    raise InvalidPolicyError(
        f"`host_budget` is {format_bytes(first.host_budget)}, and the weights{largest} take {format_bytes(needed)} of "
        f"host memory. Give `offload_to_disk_path` for what does not fit, or at least {needed} bytes."
    )
