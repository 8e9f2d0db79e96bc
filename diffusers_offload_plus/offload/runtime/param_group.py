"""One group at run time: its host slab, its device copy, and the re-pointing of parameters between the two.

[Note: a write is copied, never lost]
Offloading re-points parameters at their host copy and drops the device copy. Before it is dropped: a parameter that
others re-pointed is found by the identity of its storage; an in-place write is found by the version counter; where
counters prove nothing (training, ``onloaded``) the bytes are compared; buffers are copied back always. Only what was
written travels device to host.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import torch

from ...errors import FileChangedError
from ..model.inventory import Entry, GroupSpec, Residency
from ..model.tensors import cast_tensor, is_wrapper, map_plain, plain_bytes, plain_tensors, repoint, same_bits
from ..stores.host import HostAllocator
from ..stores.layout import view_of
from ..stores.storage import Allocator, WeightStorage
from ..transfer.transfer import CopyEngine, Transfer

__all__ = ["ParamGroup", "State"]


Room = Callable[[int], bool]


def _any(nbytes: int) -> bool:
    return True


class State(enum.Enum):
    """Where the group's parameters point."""

    OFFLOADED = "offloaded"
    PREFETCHED = "prefetched"  # still at the host copy; the device copy is on its way
    ONLOADED = "onloaded"
    KEPT = "kept"  # at the device copy between passes; whoever reads it there without computing brings it home


@dataclasses.dataclass(slots=True)
class _Loan:
    entry: Entry
    host: torch.Tensor  # what the parameter goes back to
    version: int | None


class _Moved(Exception):
    """A parameter no longer lies in the slab: others gave it new memory."""


class ParamGroup:
    """The weights of one :class:`.GroupSpec`.

    Attributes:
        users: how many running modules need the group; it stays onloaded while there are any.
        runs: how often a module that owns its weights has run.
        kept: it is to stay on the device between passes, as far as there is room.
        in_place: the device computes with its weights where they rest.
        written_back: bytes that had to travel device to host because somebody wrote them.
    """

    def __init__(self, spec: GroupSpec, link: CopyEngine, placement: Allocator) -> None:
        self.spec = spec
        self.users = 0
        self.runs = 0
        self.kept = False
        self.onloads = 0
        self.written_back = 0
        self.repacked = 0
        self._copy_engine = link
        self._placement = placement
        self._transfer: Transfer | None = None
        self._loans: list[_Loan] = []
        self._storage = 0
        self._copied: list[int | None] = []
        self.state = State.OFFLOADED
        self.home = self._settle_in(placement)

    @property
    def nbytes(self) -> int:
        """Bytes one transfer of the group moves."""
        return self.home.nbytes

    @property
    def tier(self) -> str:
        """Where its weights rest: "disk", "pinned host", "host", or either of these shared with other processes."""
        return self.home.tier

    @property
    def device_bytes(self) -> int:
        """Bytes the group holds on the device now."""
        return 0 if self._transfer is None else self._transfer.slab.numel()

    @property
    def on_its_way(self) -> bool:
        """Whether a transfer has been started and its device memory taken."""
        return self._transfer is not None

    @property
    def under_way(self) -> bool:
        """Whether somebody who needs the group now would have to wait for a disk."""
        return self._transfer is not None and self._transfer.under_way

    def prefetch(self, room: Room = _any) -> bool:
        """Start bringing the group to the device. Idempotent.

        Args:
            room: asked whether so many bytes may be taken there.

        Returns:
            Whether it is on its way.
        """
        if self._transfer is None:
            home = self._current_home()
            if not room(0 if self.in_place else home.nbytes):
                return False
            self._transfer = self._copy_engine.start(home)
            self._copied = [] if self.in_place else self._versions()
            self._take(self.device_bytes)
            self.state = State.PREFETCHED
            self.onloads += 1
        return True

    def onload(self, room: Room = _any) -> None:
        """Point the group's parameters at the device, ordered after the transfer. Idempotent."""
        if self.state is State.ONLOADED:
            return
        if self.state is State.KEPT:
            if all(self._on_loan(entry.tensor) for entry in self.spec.entries):
                self.state = State.ONLOADED
                return
            self.offload(compare=True)  # others re-pointed a parameter since the last pass
        if self._transfer is not None and not self.in_place and self._copied != self._versions():
            self.discard()  # written between prefetch and use: what is under way holds the old values
        self.prefetch(room)
        try:
            self._lend()
        except _Moved:
            self.discard()
            self.prefetch(room)
            self._lend()

    def stay(self) -> None:
        """Leave the group on the device at the end of a pass, its parameters at the device copy: what is written
        there from now on is written to what the next pass computes with."""
        if self.state is State.PREFETCHED:
            self.onload()
        if self.state is State.ONLOADED:
            self.state = State.KEPT

    def offload(self, *, compare: bool = False) -> None:
        """Point the parameters back at their host copy and drop the device copy, writes kept. Idempotent.

        Args:
            compare: compare all bytes instead of trusting version counters.
        """
        if self.state in (State.ONLOADED, State.KEPT):
            try:
                self._keep_writes(compare)
            except FileChangedError:
                self._rescue()
            for loan in self._loans:
                if self._on_loan(loan.entry.tensor):
                    repoint(loan.entry.tensor, loan.host)
            self._loans = []
            self._storage = 0  # the allocator may give the same address to an activation next
            self.state = State.OFFLOADED
        self.discard()

    def discard(self) -> None:
        """Drop a prefetched copy nobody used."""
        if self.state in (State.ONLOADED, State.KEPT):
            return
        transfer = self._transfer
        if transfer is not None:
            transfer.cancel()
            self._take(-self.device_bytes)
            self._transfer = None
            self._copy_engine.let_go(self.home, transfer)
            del transfer
            self._copy_engine.budget.settle()
        self.state = State.OFFLOADED

    def _take(self, nbytes: int) -> None:
        self._copy_engine.hold(nbytes)
        if not self.kept and self.spec.residency is Residency.STREAMED:
            self._copy_engine.streaming += nbytes

    def owns_storage(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a view of the group's present device slab."""
        return self.state in (State.ONLOADED, State.KEPT) and tensor.untyped_storage()._cdata == self._storage

    def leave(self) -> None:
        """Move the weights of an offloaded group to ordinary host memory, with nothing of the group left on them."""
        if self.home.tier != "host":
            self.home = self._settle_in(HostAllocator(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8)))

    # At rest

    def cast(self, dtype_of: Callable[[str], torch.dtype | None]) -> None:
        """Cast the tensors of the offloaded group, and give them a home as they are then."""
        for entry in self.spec.entries:
            cast_tensor(entry.tensor, dtype_of(entry.names[0]))
        self._current_home()

    def _settle_in(self, placement: Allocator) -> WeightStorage:
        sources = [t for entry in self.spec.entries for _, t in plain_tensors(entry.tensor)]
        home = placement.store(self.spec.key, [t.detach() for t in sources])
        homes = iter(home.tensors)
        for entry in self.spec.entries:
            repoint(entry.tensor, map_plain(entry.tensor.detach(), lambda _: next(homes)))
        self.in_place = self._copy_engine.uses_in_place(home)
        return home

    def _current_home(self) -> WeightStorage:
        # Where others re-pointed a parameter of an offloaded group, what it points at is given a home.
        if not all(self._at_home(t) for entry in self.spec.entries for _, t in plain_tensors(entry.tensor)):
            self._copy_engine.drain()
            self.home = self._settle_in(self._placement)
            self.repacked += 1
        return self.home

    def _versions(self) -> list[int | None]:
        return [_version(entry.tensor) for entry in self.spec.entries]

    def _at_home(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() == 0 or self.home.offset_of(tensor) is not None

    # Device side

    def _view(self, storage: torch.UntypedStorage, host: torch.Tensor) -> torch.Tensor:
        if host.numel() == 0:
            return torch.empty_strided(host.size(), host.stride(), dtype=host.dtype, device=self._copy_engine.device)
        offset = self.home.offset_of(host)
        if offset is None:
            raise _Moved
        return view_of(storage, offset, host, self._copy_engine.device)

    def _lend(self) -> None:
        assert self._transfer is not None
        if self.in_place:
            self._transfer.wait(self)
            self.state = State.ONLOADED
            return
        storage = self._transfer.slab.untyped_storage()
        loans: list[tuple[_Loan, torch.Tensor]] = []
        for entry in self.spec.entries:
            host = _snapshot(entry.tensor)
            loans.append((_Loan(entry, host, None), map_plain(host, lambda t: self._view(storage, t))))
        self._transfer.wait(self)
        self._storage = storage._cdata
        for loan, device in loans:
            repoint(loan.entry.tensor, device)
            loan.version = _version(loan.entry.tensor)
            self._loans.append(loan)
        self.state = State.ONLOADED

    def _on_loan(self, tensor: torch.Tensor) -> bool:
        return all(t.numel() == 0 or t.untyped_storage()._cdata == self._storage for _, t in plain_tensors(tensor))

    def _keep_writes(self, compare: bool) -> None:
        assert self._transfer is not None
        slab = self._transfer.slab
        if compare:
            piece = self._copy_engine.budget.scratch
            for start in range(0, slab.numel(), piece):
                part = slice(start, min(start + piece, slab.numel()))
                host = self.home.part(part.start, part.stop)
                if not torch.equal(slab[part], host.to(slab.device)):
                    self._copy_back(slab, part.start, part.stop)
        for loan in self._loans:
            tensor = loan.entry.tensor
            if not self._on_loan(tensor):
                self._adopt(loan)
            elif loan.entry.is_buffer or loan.version is None or _version(tensor) != loan.version:
                for _, t in plain_tensors(tensor):
                    if t.numel():
                        start = int(t.storage_offset()) * t.element_size()
                        extent = self.home.extent_at(start)
                        self._copy_back(slab, extent.offset, extent.offset + extent.nbytes)

    def _rescue(self) -> None:
        # The file at home was changed by others, and the device still has what it held before: that is kept.
        assert self._transfer is not None
        storage = self._transfer.slab.cpu().untyped_storage()
        host = torch.device("cpu")
        for loan in self._loans:
            if self._on_loan(loan.entry.tensor):
                value = map_plain(
                    _snapshot(loan.entry.tensor),
                    lambda t: view_of(storage, int(t.storage_offset()) * t.element_size(), t, host),
                )
                repoint(loan.entry.tensor, value)

    def _copy_back(self, slab: torch.Tensor, start: int, stop: int) -> None:
        self.home.write(start, slab[start:stop])
        self.written_back += stop - start

    def _adopt(self, loan: _Loan) -> None:
        # Others gave the parameter new memory while it was onloaded; its values are the truth unless they are the
        # old ones.
        tensor = loan.entry.tensor
        value = map_plain(_snapshot(tensor), lambda t: t.to("cpu"))
        if same_bits(value, loan.host):
            value = loan.host
        else:
            self.written_back += plain_bytes(value)
        repoint(tensor, value)


def _snapshot(tensor: torch.Tensor) -> torch.Tensor:
    """An alias of what ``tensor`` points at now, with the same inner tensor objects if it is a wrapper."""
    return map_plain(tensor, lambda t: t) if is_wrapper(tensor) else tensor.data


def _version(tensor: torch.Tensor) -> int | None:
    """Sum of the version counters of ``tensor``; None where there are none (inference tensors)."""
    if tensor.is_inference():
        return None
    total: int = tensor._version
    if is_wrapper(tensor):
        for _, inner in plain_tensors(tensor):
            if inner.is_inference():
                return None
            total += inner._version
    return total
