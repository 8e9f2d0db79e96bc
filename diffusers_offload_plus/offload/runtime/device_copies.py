"""Device copies lent to code that reads an offloaded tensor outside of any pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ..model.inventory import Entry
from ..model.tensors import map_plain, plain_bytes, plain_tensors, relocate, same_bits
from ..transfer.transfer import CopyEngine
from .param_group import ParamGroup

__all__ = ["DeviceCopies"]


@dataclasses.dataclass(eq=False, slots=True)
class _Loan:
    group: ParamGroup
    entry: Entry
    value: torch.Tensor
    as_lent: torch.Tensor
    nbytes: int


class DeviceCopies:
    """Copies lent since the last pass. Each is kept beside its original values, so that a write to it is found and
    not lost."""

    def __init__(self, link: CopyEngine) -> None:
        self._copy_engine = link
        self._open: dict[int, _Loan] = {}

    @property
    def nbytes(self) -> int:
        """Device bytes held by open loans."""
        return sum(loan.nbytes for loan in self._open.values())

    def lend(self, group: ParamGroup, entry: Entry, room: Callable[[int], object]) -> torch.Tensor:
        """A copy of ``entry`` on the device; the same one for every reader until :meth:`settle`, unless the host
        copy changes.

        Args:
            room: makes room for so many bytes, or raises.
        """
        nbytes = 2 * plain_bytes(entry.tensor)  # as it is now: it may have been cast
        room(nbytes)
        known = self._open.get(id(entry.tensor))
        fresh = map_plain(entry.tensor.detach(), lambda t: relocate(t, self._copy_engine.device))
        if known is not None and same_bits(fresh, known.as_lent):
            return known.value
        if known is not None:
            self._end(known)
        loan = _Loan(group, entry, fresh, map_plain(fresh, torch.clone), nbytes)
        self._open[id(entry.tensor)] = loan
        self._copy_engine.hold(nbytes)
        return loan.value

    def settle(self) -> None:
        """End all loans; what was written to a copy goes to the host."""
        for loan in self._open.values():
            self._end(loan)
        self._open.clear()

    def _end(self, loan: _Loan) -> None:
        if not same_bits(loan.value, loan.as_lent):
            for (_, home), (_, lent) in zip(plain_tensors(loan.entry.tensor), plain_tensors(loan.value), strict=True):
                home.data.copy_(lent)
            loan.group.written_back += loan.nbytes // 2
        self._copy_engine.hold(-loan.nbytes)
