"""The plan: what streams, what is cached, and the device memory that takes. Pure data, computed from an inventory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from ..model.inventory import Decision, GroupSpec, Inventory, Residency
from ..policy import OffloadPolicy
from .residency import evenly_spread, nested_groups

__all__ = ["GroupPlan", "HeldGroup", "OffloadPlan", "groups_in_memory", "make_plan", "staging_bytes"]


class HeldGroup(NamedTuple):
    """A group as an engine holds it: what it is, its packed bytes, and where it rests."""

    spec: GroupSpec
    nbytes: int
    tier: str
    in_place: bool
    cached: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """One group.

    Attributes:
        nbytes: packed size in bytes.
        residency: where it is while nothing runs; ``tier``: where it rests meanwhile or otherwise ("host", "disk").
        device_bytes: bytes it takes on the device while in use; none where the device computes with it in place.
        tensors: their names.
    """

    name: str
    nbytes: int
    residency: Residency
    tier: str
    device_bytes: int
    tensors: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffloadPlan:
    """What an engine will do.

    Attributes:
        groups: every group, in the order of the model.
        persistent_bytes: buffers and the like, which never leave the device.
        prefetch_depth: groups onloaded ahead of the one in use.
        nested_bytes: largest sum of streamed groups that modules running inside one another need at once.
        stream_bytes: with a budget, device bytes that streamed groups pass through.
        decisions: everything treated differently from the plain rule, and why.
    """

    groups: tuple[GroupPlan, ...]
    persistent_bytes: int
    prefetch_depth: int
    nested_bytes: int
    decisions: tuple[Decision, ...]
    stream_bytes: int | None = None

    @property
    def streamed_bytes(self) -> int:
        """Bytes that travel in a pass that uses each group once."""
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
        """Bytes of the groups that rest on ``tier``."""
        return sum(group.nbytes for group in self.groups if group.tier == tier)

    @property
    def host_bytes(self) -> int:
        """Bytes of the groups that rest in host memory of any kind."""
        return sum(group.nbytes for group in self.groups if group.tier.endswith("host"))

    @property
    def shared_bytes(self) -> int:
        """Bytes of those that this process shares with others."""
        return sum(group.nbytes for group in self.groups if "shared" in group.tier)

    @property
    def device_bound(self) -> int:
        """Most bytes of weights on the device at any moment of an inference pass in which modules call their own
        submodules.

        A module that reads another's weights without calling it adds a copy of that group while it runs, but for a
        budget, which holds whatever happens.
        """
        if self.stream_bytes is not None:
            return self.resident_bytes + self.cached_bytes + min(self.stream_bytes, self.streamed_bytes)
        streamed = sorted((g.device_bytes for g in self.groups if g.residency is Residency.STREAMED), reverse=True)
        return self.resident_bytes + self.nested_bytes + sum(streamed[: self.prefetch_depth])


def groups_in_memory(sizes: Sequence[int], budget: int | None, *, staged: bool = False) -> frozenset[int]:
    """Which of the groups of these ``sizes`` (bytes, in the order of use) rest in host memory, the others on disk.

    Two staging buffers count as well, and two more if those in memory pass through buffers of their own
    (``staged``). What stays in memory is spread evenly over the model, so that while one group is used there
    is time to read the next from disk.
    """
    if budget is None:
        return frozenset()
    total = sum(sizes)
    buffers = 2 * staging_bytes(sizes, budget)
    if total + staged * buffers <= budget:
        return frozenset(range(len(sizes)))
    return frozenset(evenly_spread(sizes, range(len(sizes)), budget - (1 + staged) * buffers))


def staging_bytes(sizes: Sequence[int], budget: int | None) -> int:
    """Bytes of one staging buffer: the largest group's, or where the budget is small an eighth of it.

    A group then travels in several copies; four buffers never take more than half of the budget.
    """
    largest = max(sizes, default=0)
    return largest if budget is None else min(largest, budget // 8)


def make_plan(
    inventory: Inventory,
    held: Sequence[HeldGroup],
    persistent_bytes: int,
    policy: OffloadPolicy,
    *,
    stream_bytes: int | None = None,
) -> OffloadPlan:
    """Compute the plan for ``inventory``.

    Args:
        held: its groups that are managed; none where nothing moves.
        persistent_bytes: bytes of the tensors that are on the device one by one, for good.
        stream_bytes: device bytes that streamed groups pass through, if there is a budget.
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
        for group in held
    )
    streamed = [group for group, plan in zip(held, groups, strict=True) if plan.residency is Residency.STREAMED]
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
