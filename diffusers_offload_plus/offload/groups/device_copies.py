"""Device copies for code that reads an offloaded tensor outside of any pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ..model.inventory import Entry
from ..model.tensors import map_plain, plain_bytes, plain_tensors, relocate, same_bits
from ..transfer.copy_engine import CopyEngine
from .param_group import ParamGroup

__all__ = ["DeviceCopies"]


@dataclasses.dataclass(eq=False, slots=True)
class _Copy:
    group: ParamGroup
    entry: Entry
    value: torch.Tensor
    original: torch.Tensor
    nbytes: int


class DeviceCopies:
    """Copies handed out since the last pass. Each lies beside its original values, so that a write to it is found
    and not lost."""

    def __init__(self, copy_engine: CopyEngine) -> None:
        self._copy_engine = copy_engine
        self._open: dict[int, _Copy] = {}

    @property
    def nbytes(self) -> int:
        """Device bytes held by the copies."""
        return sum(given.nbytes for given in self._open.values())

    def copy_of(self, group: ParamGroup, entry: Entry, reserve: Callable[[int], object]) -> torch.Tensor:
        """A copy of ``entry`` on the device; the same one for every reader until :meth:`end_all`, unless the host
        copy changes.

        Args:
            reserve: reserves so many bytes, or raises.
        """
        nbytes = 2 * plain_bytes(entry.tensor)  # as it is now: it may have been cast
        reserve(nbytes)
        known = self._open.get(id(entry.tensor))
        fresh = map_plain(entry.tensor.detach(), lambda t: relocate(t, self._copy_engine.device))
        if known is not None and same_bits(fresh, known.original):
            return known.value
        if known is not None:
            self._end(known)
        given = _Copy(group, entry, fresh, map_plain(fresh, torch.clone), nbytes)
        self._open[id(entry.tensor)] = given
        self._copy_engine.account(nbytes)
        return given.value

    def end_all(self) -> None:
        """Drop all copies; what was written to one goes to the host."""
        for given in self._open.values():
            self._end(given)
        self._open.clear()

    def _end(self, given: _Copy) -> None:
        if not same_bits(given.value, given.original):
            pairs = zip(plain_tensors(given.entry.tensor), plain_tensors(given.value), strict=True)
            for (_, stored), (_, written) in pairs:
                stored.data.copy_(written)
            given.group.writes.nbytes += given.nbytes // 2
        self._copy_engine.account(-given.nbytes)
