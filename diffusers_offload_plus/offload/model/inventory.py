"""Which tensors move together: the units of :mod:`.partition` refined by what memory the tensors share.

[Note: groups and units]
A unit says what a running module needs; a group is what one transfer moves. Mostly they are one to one. Memory that
several units use (tied weights, a module with two parents, views of one base) becomes a group of its own that each
of those units needs as well, so it moves once however many names it has.

[Note: what does not stream]
Some tensors stay on the device: the root's own parameters, which methods other than forward read where no hook can
see it, and small buffers, which forward may write without leaving a trace. What cannot be copied as bytes (sparse
and quantised layouts) stays as well. Each such decision carries its reason.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...errors import UnsupportedModelError
from ..policy import OffloadPolicy
from ..stores.layout import address_range, cluster
from .partition import Unit, partition
from .tensors import has_memory, is_packable, plain_bytes, plain_tensors

__all__ = ["Decision", "Entry", "GroupSpec", "Inventory", "Residency", "take_inventory"]

SMALL_BUFFER_BYTES = 16 << 20
ROOT_SHARE = 0.1  # of the model's bytes: above it even the root's own parameters stream


class Residency(enum.Enum):
    """Where a group lives while nothing runs."""

    STREAMED = "streamed"
    CACHED = "cached"  # on the device between passes, as far as a budget allows
    RESIDENT = "resident"


@dataclasses.dataclass(eq=False, kw_only=True)
class Entry:
    """One parameter or buffer (the object itself, not its values), every name it goes by, and the bytes that its plain
    tensors had when the inventory was taken."""

    tensor: torch.Tensor
    names: list[str]
    is_buffer: bool
    nbytes: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GroupSpec:
    """Entries that one transfer moves, and the units that need them (indices into :attr:`Inventory.units`)."""

    name: str
    entries: tuple[Entry, ...]
    units: frozenset[int]
    residency: Residency

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for groups of the same tensors under the same residency."""
        return (self.residency, *sorted(id(entry.tensor) for entry in self.entries))

    @property
    def nbytes(self) -> int:
        """Bytes of all entries; shared bytes count once for each entry."""
        return sum(entry.nbytes for entry in self.entries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """A tensor or unit treated differently from the plain rule, and why."""

    name: str
    reason: str


@dataclasses.dataclass(eq=False, kw_only=True)
class Inventory:
    """The whole model: units, groups, and the tensors persistent to the device one by one and kept there."""

    units: list[Unit]
    groups: list[GroupSpec]
    persistent: list[Entry]
    decisions: list[Decision]


def take_inventory(root: nn.Module, policy: OffloadPolicy, label: str, *, values: bool = True) -> Inventory:
    """Look at every tensor of ``root`` and decide what moves with what. Changes nothing.

    Args:
        values: every tensor must have values. If not, those on the meta device count with the size they would have;
            having no addresses, they share memory with no tensor but themselves.

    Raises:
        UnsupportedModelError: a tensor has no values (meta device, uninitialised) or cannot be offloaded.
    """
    units = partition(root, policy)
    entries = _entries(root, label, values)
    users: dict[int, set[int]] = {}
    for index, unit in enumerate(units):
        for _, module in unit.owners:
            for tensor in _direct(module):
                users.setdefault(id(tensor), set()).add(index)

    clusters = _clusters(list(entries.values()))
    decisions = [Decision(name=u.name or label, reason=u.reason) for u in units if u.reason]
    total = sum(entry.nbytes for entry in entries.values())
    persistent: list[Entry] = []
    members: dict[tuple[frozenset[int], Residency], list[Entry]] = {}
    for group in clusters:
        if _is_carried(group):
            persistent.extend(group)
            continue
        needed = frozenset().union(*(users[id(entry.tensor)] for entry in group))
        residency = Residency.STREAMED
        if _is_roots_own(root, units, needed) and sum(entry.nbytes for entry in group) <= ROOT_SHARE * total:
            residency = Residency.RESIDENT
            why = "direct parameter of the root: methods other than forward may read it, so it stays on the device"
            decisions.extend(Decision(name=entry.names[0], reason=why) for entry in group)
        members.setdefault((needed, residency), []).extend(group)
    for entry in persistent:
        if not entry.is_buffer:
            decisions.append(
                Decision(name=entry.names[0], reason="layout is not dense bytes, so it stays on the device")
            )
    order = {id(entry.tensor): place for place, entry in enumerate(entries.values())}
    groups = []
    for (needed, residency), group in members.items():
        group.sort(key=lambda entry: order[id(entry.tensor)])
        name = " + ".join(units[index].name or label for index in sorted(needed))
        groups.append(GroupSpec(name=name, entries=tuple(group), units=needed, residency=residency))
        if len(needed) > 1:
            decisions.append(Decision(name=group[0].names[0], reason=f"shared by {name}: moves as a group of its own"))
    groups.sort(key=lambda spec: min(spec.units))
    return Inventory(units=units, groups=groups, persistent=persistent, decisions=decisions)


def _direct(module: nn.Module) -> Iterable[torch.Tensor]:
    for tensors in (module._parameters.values(), module._buffers.values()):
        for tensor in tensors:
            if tensor is not None:
                yield tensor


def _entries(root: nn.Module, label: str, values: bool) -> dict[int, Entry]:
    found: dict[int, Entry] = {}
    for kind, named in (
        ("parameter", root.named_parameters(remove_duplicate=False)),
        ("buffer", root.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            if kind == "parameter" and not isinstance(tensor, torch.nn.Parameter):
                continue  # swapped in for one call by ``functional_call``: the caller's own
            entry = found.get(id(tensor))
            if entry is not None:
                entry.names.append(name)
                continue
            _refuse_sharded(f"{label}.{name}", kind, tensor)
            plain = [t for _, t in plain_tensors(tensor)]
            _require_values(f"{label}.{name}", kind, [tensor, *plain], values)
            found[id(tensor)] = Entry(
                tensor=tensor, names=[name], is_buffer=kind == "buffer", nbytes=plain_bytes(tensor)
            )
    return found


def _require_values(name: str, kind: str, tensors: list[torch.Tensor], values: bool) -> None:
    # What is not initialised has no size either.
    if any(is_lazy(t) or (values and not has_memory(t)) for t in tensors):
        raise UnsupportedModelError(
            f"The {kind} '{name}' has no values (it is on the meta device or not initialised). "
            "Load or initialise the model first."
        )


def _refuse_sharded(name: str, kind: str, tensor: torch.Tensor) -> None:
    # By name: importing torch.distributed.tensor takes a second, and most models have never heard of it.
    if any(base.__name__ == "DTensor" and base.__module__.startswith("torch.dist") for base in type(tensor).__mro__):
        raise UnsupportedModelError(
            f"The {kind} '{name}' is a DTensor: tensor parallelism already decides where it lives. "
            "Offload a model that is not sharded."
        )


def _clusters(entries: list[Entry]) -> list[list[Entry]]:
    # Union of two relations: entries whose plain tensors overlap in memory, and plain tensors of one entry.
    owner: list[int] = []
    ranges: list[tuple[int, int]] = []
    for index, entry in enumerate(entries):
        for _, tensor in plain_tensors(entry.tensor):
            if is_packable(tensor) and not tensor.is_meta:
                owner.append(index)
                ranges.append(address_range(tensor))
    parent = list(range(len(entries)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for overlapping in cluster(ranges):
        for i in overlapping[1:]:
            parent[find(owner[i])] = find(owner[overlapping[0]])
    result: dict[int, list[Entry]] = {}
    for index, entry in enumerate(entries):
        result.setdefault(find(index), []).append(entry)
    return list(result.values())


def _is_carried(group: list[Entry]) -> bool:
    if any(not is_packable(t) for entry in group for _, t in plain_tensors(entry.tensor)):
        return True
    # Buffers that share memory move as a group, which keeps them sharing it.
    return len(group) == 1 and group[0].is_buffer and group[0].nbytes <= SMALL_BUFFER_BYTES


def _is_roots_own(root: nn.Module, units: list[Unit], needed: frozenset[int]) -> bool:
    return any(units[index].triggers[0][1] is root for index in needed) and any(True for _ in root.children())
