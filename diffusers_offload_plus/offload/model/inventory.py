"""The groups of a model: which tensors move together, and which stay on the device.

[Note: groups and units]
A unit (see :mod:`.partition`) is what a running module needs. A group is what one transfer moves. Most units have one
group. Memory that several units use (tied weights, a module with two parents, views of one base) becomes a group of
its own, which each of those units needs as well. So it moves once, however many names it has.

[Note: what does not stream]
Some tensors stay on the device. The root's own parameters stay because methods other than forward read them where no
hook sees it. Small buffers stay because forward may write them without a trace. Tensors that cannot be copied as bytes
(sparse and quantised layouts) stay as well. The report gives the reason for each parameter that stays.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...errors import UnsupportedModelError
from ..policy import OffloadPolicy
from ..stores.layout import address_range, cluster
from .partition import Unit, partition, paths
from .tensors import has_memory, is_packable, plain_bytes, plain_tensors

__all__ = ["Decision", "Entry", "GroupSpec", "Inventory", "Residency", "take_inventory"]

SMALL_BUFFER_BYTES = 16 << 20
ROOT_SHARE = 0.1  # of the model's bytes; larger parameters of the root stream


class Residency(enum.Enum):
    """Where a group is between passes."""

    STREAMED = "streamed"  # on the host or on disk; copied to the device for each pass
    CACHED = "cached"  # on the device as far as a budget allows
    RESIDENT = "resident"  # on the device


@dataclasses.dataclass(eq=False, kw_only=True)
class Entry:
    """One parameter or buffer of a model.

    Attributes:
        tensor: the object itself; its values may move.
        names: all its qualified names.
        nbytes: bytes of its plain tensors when the inventory was taken.
    """

    tensor: torch.Tensor
    names: list[str]
    is_buffer: bool
    nbytes: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GroupSpec:
    """A group: the entries that one transfer moves.

    Attributes:
        units: the units that need the group, as indices into :attr:`Inventory.units`.
        residency: ``STREAMED`` or ``RESIDENT``; a budget may cache a streamed group.
    """

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
        """Bytes of all entries. Bytes that entries share count for each of them."""
        return sum(entry.nbytes for entry in self.entries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """A tensor or unit that is treated in a special way, and why. It is for the report."""

    name: str
    reason: str


@dataclasses.dataclass(eq=False, kw_only=True)
class Inventory:
    """All units and groups of a model.

    Attributes:
        persistent: small buffers, and tensors that are no dense bytes. Each is brought to the device by itself and
            stays there.
    """

    units: list[Unit]
    groups: list[GroupSpec]
    persistent: list[Entry]
    decisions: list[Decision]


def take_inventory(
    root: nn.Module, policy: OffloadPolicy, label: str, *, known: Collection[int] = (), values: bool = True
) -> Inventory:
    """Look at all tensors of ``root`` and decide which of them move together. Changes nothing.

    Args:
        known: ids of modules that were triggers of units before; see [Note: wrapped blocks].
        values: refuse tensors on the meta device. If they are allowed, they count with the size that they would have.
            They have no address, so none is taken to share memory with another.

    Raises:
        UnsupportedModelError: a tensor has no values (meta device, uninitialised) or cannot be offloaded.
    """
    units = partition(root, policy, known)
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
        if _is_persistent(group):
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
    modules = list(paths(root))
    for kind, slot in (("parameter", "_parameters"), ("buffer", "_buffers")):
        named = (
            (f"{path}.{n}" if path else n, t) for path, module in modules for n, t in getattr(module, slot).items()
        )
        for name, tensor in named:
            if tensor is None:
                continue
            if kind == "parameter" and not isinstance(tensor, torch.nn.Parameter):
                continue  # ``functional_call`` put it there for one call
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


def _named_tensors(modules: list[tuple[str, nn.Module]], slot: str) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in modules:
        for name, tensor in getattr(module, slot).items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _require_values(name: str, kind: str, tensors: list[torch.Tensor], values: bool) -> None:
    # A tensor that is not initialised has no size either, so it is refused in any case.
    if any(is_lazy(t) or (values and not has_memory(t)) for t in tensors):
        raise UnsupportedModelError(
            f"The {kind} '{name}' has no values (it is on the meta device or not initialised). "
            "Load or initialise the model first."
        )


def _refuse_sharded(name: str, kind: str, tensor: torch.Tensor) -> None:
    # By name: importing torch.distributed.tensor takes a second, and most models do not use it.
    if any(base.__name__ == "DTensor" and base.__module__.startswith("torch.dist") for base in type(tensor).__mro__):
        raise UnsupportedModelError(
            f"The {kind} '{name}' is a DTensor: tensor parallelism already decides on its device. "
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


def _is_persistent(group: list[Entry]) -> bool:
    if any(not is_packable(t) for entry in group for _, t in plain_tensors(entry.tensor)):
        return True
    # Buffers that share memory move as a group: packed together they still share it.
    return len(group) == 1 and group[0].is_buffer and group[0].nbytes <= SMALL_BUFFER_BYTES


def _is_roots_own(root: nn.Module, units: list[Unit], needed: frozenset[int]) -> bool:
    return any(units[index].triggers[0][1] is root for index in needed) and any(True for _ in root.children())
