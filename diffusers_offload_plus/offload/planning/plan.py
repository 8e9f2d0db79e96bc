"""The plan of one model as pure data: what streams, what is cached, and the device memory that takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from ..model.inventory import Decision, GroupSpec, Inventory, Residency
from ..policy import OffloadPolicy
from .residency import evenly_spread, nested_groups

__all__ = ["GroupPlan", "HeldGroup", "OffloadPlan", "groups_in_memory", "make_plan", "staging_bytes"]


class HeldGroup(NamedTuple):
    """A group that is stored: its spec, its packed bytes, and its tier.

    Attributes:
        in_place: the device computes with the weights where they are stored.
        cached: the group is to be cached on the device between passes.
    """

    spec: GroupSpec
    nbytes: int
    tier: str
    in_place: bool
    cached: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """The plan of one group.

    Attributes:
        nbytes: packed size in bytes.
        residency: where the group is between passes; ``tier``: where it is stored, such as "host" or "disk".
        device_bytes: bytes on the device while in use; 0 where the device computes with the group in place.
        tensors: names of the tensors.
    """

    name: str
    nbytes: int
    residency: Residency
    tier: str
    device_bytes: int
    tensors: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffloadPlan:
    """The plan of one model.

    Attributes:
        groups: all groups, in the order of the model.
        persistent_bytes: bytes of persistent buffers and other tensors that are on the device one by one.
        prefetch_depth: groups onloaded ahead of the one in use, without a budget.
        nested_bytes: most bytes of streamed groups that modules which run inside one another need at once.
        stream_bytes: device memory that streamed groups pass through; None without a budget.
        decisions: tensors and units that are treated in a special way, and why.
    """

    groups: tuple[GroupPlan, ...]
    persistent_bytes: int
    prefetch_depth: int
    nested_bytes: int
    decisions: tuple[Decision, ...]
    stream_bytes: int | None = None

    @property
    def streamed_bytes(self) -> int:
        """Bytes that a pass copies to the device if it uses each group once."""
        return sum(group.nbytes for group in self.groups if group.residency is Residency.STREAMED)

    @property
    def cached_bytes(self) -> int:
        """Bytes that are cached on the device between passes, as far as a budget allows."""
        return sum(group.nbytes for group in self.groups if group.residency is Residency.CACHED)

    @property
    def resident_bytes(self) -> int:
        """Bytes that never leave the device."""
        return self.persistent_bytes + sum(g.device_bytes for g in self.groups if g.residency is Residency.RESIDENT)

    def bytes_on(self, tier: str) -> int:
        """Bytes of the groups that are stored on ``tier``."""
        return sum(group.nbytes for group in self.groups if group.tier == tier)

    @property
    def host_bytes(self) -> int:
        """Bytes of the groups that are stored in host memory of any kind."""
        return sum(group.nbytes for group in self.groups if group.tier.endswith("host"))

    @property
    def shared_bytes(self) -> int:
        """Bytes of the groups that are stored in memory that processes share."""
        return sum(group.nbytes for group in self.groups if "shared" in group.tier)

    @property
    def device_bound(self) -> int:
        """Most bytes of weights on the device at any moment of an inference pass.

        Without a budget, a module that reads another's weights without calling it adds that group while it runs.
        """
        if self.stream_bytes is not None:
            return self.resident_bytes + self.cached_bytes + min(self.stream_bytes, self.streamed_bytes)
        streamed = sorted((g.device_bytes for g in self.groups if g.residency is Residency.STREAMED), reverse=True)
        return self.resident_bytes + self.nested_bytes + sum(streamed[: self.prefetch_depth])


def groups_in_memory(sizes: Sequence[int], budget: int | None, *, staged: bool = False) -> frozenset[int]:
    """Places of the groups that are stored in host memory within a host budget. The others are stored on disk.

    Groups in memory are spread evenly over the model, so that while they are used there is time to read the next group
    from disk.

    Args:
        sizes: bytes of the groups, in the order of use.
        budget: bytes of host memory for groups and two staging buffers; None: all groups are stored on disk.
        staged: groups in memory pass through two more staging buffers.
    """
    if budget is None:
        return frozenset()
    total = sum(sizes)
    buffers = 2 * staging_bytes(sizes, budget)
    if total + staged * buffers <= budget:
        return frozenset(range(len(sizes)))
    return frozenset(evenly_spread(sizes, range(len(sizes)), budget - (1 + staged) * buffers))


def staging_bytes(sizes: Sequence[int], budget: int | None) -> int:
    """Bytes of one staging buffer: those of the largest group, but at most an eighth of the budget.

    So four buffers take at most half of the budget. A group that is larger than a buffer is copied in pieces.
    """
    largest = max(sizes, default=0)
    return largest if budget is None else min(largest, budget // 8)


def make_plan(
    inventory: Inventory,
    stored: Sequence[HeldGroup],
    persistent_bytes: int,
    policy: OffloadPolicy,
    *,
    stream_bytes: int | None = None,
) -> OffloadPlan:
    """Compute the plan for ``inventory``.

    Args:
        stored: the groups of the inventory that the engine has stored; none on a CPU without disk tier.
        persistent_bytes: bytes of tensors that are on the device one by one.
        stream_bytes: device memory that streamed groups pass through; None without a budget.
    """
    groups = tuple(
        GroupPlan(
            name=group.spec.name,
            nbytes=group.nbytes,
            residency=Residency.CACHED if group.cached else group.spec.residency,
            tier=group.tier,
            device_bytes=0 if group.in_place else group.nbytes,
            tensors=tuple(name for entry in group.spec.entries for name in entry.names),
        )
        for group in stored
    )
    streamed = [group for group, plan in zip(stored, groups, strict=True) if plan.residency is Residency.STREAMED]
    nests = nested_groups(inventory.units, [group.spec for group in streamed])
    taken = [0 if group.in_place else group.nbytes for group in streamed]
    return OffloadPlan(
        groups=groups,
        persistent_bytes=persistent_bytes,
        prefetch_depth=policy.prefetch_depth,
        nested_bytes=max((sum(taken[index] for index in nest) for nest in nests), default=0),
        decisions=tuple(inventory.decisions),
        stream_bytes=stream_bytes,
    )
