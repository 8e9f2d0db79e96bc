"""The plan: what streams, what stays, and the device memory that takes. Pure data, computed from an inventory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .inventory import Decision, Inventory, Residency
from .policy import OffloadPolicy

__all__ = ["GroupPlan", "OffloadPlan", "make_plan"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """One group: its name, packed size in bytes, where it lives, and its tensors by name."""

    name: str
    nbytes: int
    residency: Residency
    tensors: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffloadPlan:
    """What an engine will do.

    Attributes:
        groups: every group, in the order of the model.
        carried_bytes: buffers and the like, kept on the device.
        prefetch_depth: groups onloaded ahead of the one in use.
        nested_bytes: largest sum of streamed groups that modules running inside one another need at once.
        decisions: everything treated differently from the plain rule, and why.
    """

    groups: tuple[GroupPlan, ...]
    carried_bytes: int
    prefetch_depth: int
    nested_bytes: int
    decisions: tuple[Decision, ...]

    @property
    def streamed_bytes(self) -> int:
        """Bytes that travel in a pass that uses each group once."""
        return sum(group.nbytes for group in self.groups if group.residency is Residency.STREAMED)

    @property
    def resident_bytes(self) -> int:
        """Bytes on the device while nothing runs."""
        return self.carried_bytes + sum(g.nbytes for g in self.groups if g.residency is Residency.RESIDENT)

    @property
    def device_bound(self) -> int:
        """Most bytes of weights on the device at any moment of an inference pass in which modules call their own
        submodules.

        A module that reads another's weights without calling it adds a copy of that group while it runs.
        """
        streamed = sorted((g.nbytes for g in self.groups if g.residency is Residency.STREAMED), reverse=True)
        return self.resident_bytes + self.nested_bytes + sum(streamed[: self.prefetch_depth])


def make_plan(inventory: Inventory, sizes: Sequence[int], carried_bytes: int, policy: OffloadPolicy) -> OffloadPlan:
    """Compute the plan for ``inventory``.

    Args:
        sizes: packed bytes of its groups; none where nothing moves.
        carried_bytes: bytes of the tensors kept on the device one by one.
    """
    specs = inventory.groups[: len(sizes)]
    groups = tuple(
        GroupPlan(
            name=spec.name,
            nbytes=nbytes,
            residency=spec.residency,
            tensors=tuple(name for entry in spec.entries for name in entry.names),
        )
        for spec, nbytes in zip(specs, sizes, strict=True)
    )
    streamed = [
        (spec.units, nbytes) for spec, nbytes in zip(specs, sizes, strict=True) if spec.residency is Residency.STREAMED
    ]
    return OffloadPlan(
        groups=groups,
        carried_bytes=carried_bytes,
        prefetch_depth=policy.prefetch_depth,
        nested_bytes=_nested_bytes(inventory, streamed),
        decisions=tuple(inventory.decisions),
    )


def _nested_bytes(inventory: Inventory, streamed: Sequence[tuple[frozenset[int], int]]) -> int:
    units_at: dict[str, set[int]] = {}
    for index, unit in enumerate(inventory.units):
        for name, _ in unit.triggers:
            units_at.setdefault(name, set()).add(index)
    largest = 0
    for name in units_at:
        active = set().union(*(units_at.get(ancestor, ()) for ancestor in _ancestry(name)))
        largest = max(largest, sum(nbytes for units, nbytes in streamed if units & active))
    return largest


def _ancestry(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
