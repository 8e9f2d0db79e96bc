"""One group at run time: where it is stored, its device copy, and the pointing of parameters at either.

[Note: a write is copied, never lost]
Offloading points parameters back at their stored values and drops the device copy. Before it is dropped, three things
are looked at. A parameter that others pointed elsewhere is found by its address and layout. An in-place write is found
by a version counter. Where counters prove nothing (training, ``onloaded``), bytes are compared. Buffers are always
copied back. Only what was written travels from device to host.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import torch

from ...errors import FileChangedError
from ..memory.slabs import DeviceSlab
from ..memory.staging import pageable
from ..model.inventory import GroupSpec, Residency
from ..model.pointers import Pointers
from ..model.tensors import alias, cast_tensor, map_plain, plain_bytes, plain_tensors, repoint, same_bits
from ..modes import engine_mode
from ..stores.host import HostAllocator
from ..stores.layout import view_of
from ..stores.storage import Allocator, WeightStorage
from ..transfer.copy_engine import CopyEngine
from ..transfer.transfer import Transfer
from .comparisons import MOST_DEFERRED, Compare, Comparison, are_stored, finish_comparisons

__all__ = ["GroupState", "ParamGroup"]


Reserve = Callable[[int], bool]


class GroupState(enum.Enum):
    """Where the parameters of a group point."""

    OFFLOADED = "offloaded"
    PREFETCHED = "prefetched"  # at the stored values; the device copy is on its way
    ONLOADED = "onloaded"
    IDLE = "idle"  # at the device copy between two passes; a read that does not compute sends them back


class ParamGroup:
    """The weights of one :class:`.GroupSpec`.

    Attributes:
        users: how many running modules need the group; it stays onloaded while there are any.
        runs: how often a module that owns its weights has run.
        cached: it is to stay on the device between passes, as far as there is memory.
        number: its place among the groups of the model.
        streams: it does not stay on the device for good.
        in_place: the device computes with the weights where they are stored.
        written_back: bytes that travelled from device to host because somebody wrote them.
        repacked: how often tensors that others had pointed elsewhere were stored anew.
        comparisons: of what was trained, put off to the end of the pass.
        dicts: dictionaries of modules that hold tensors of this group alone. They are ``onloaded_dict`` while the
            group is onloaded, and ``watched_dict`` otherwise.
    """

    onloaded_dict: type[Any]
    watched_dict: type[Any]

    def __init__(self, spec: GroupSpec, copy_engine: CopyEngine, allocator: Allocator) -> None:
        self.spec = spec
        self.streams = spec.residency is Residency.STREAMED
        self.number = 0
        self.users = 0
        self.runs = 0
        self.cached = False
        self.written_back = 0
        self.repacked = 0
        self.state = GroupState.OFFLOADED
        self.comparisons: list[Comparison] = []
        self.dicts: list[Any] = []
        self._tensors = [entry.tensor for entry in spec.entries]
        self._copy_engine = copy_engine
        self._allocator = allocator
        self._transfer: Transfer | None = None
        self._slab: DeviceSlab | None = None  # of this group alone, for its next use
        self._views: dict[DeviceSlab, Pointers] = {}
        self._device: Pointers | None = None  # the views that the parameters point at, or did last
        self._copied: list[int] = []  # versions of the stored values that are on their way
        self._seen: list[int] = []  # versions of the parameters when they were onloaded
        self.storage = self._pack(allocator)

    @property
    def nbytes(self) -> int:
        """Bytes one transfer of the group moves."""
        return self.storage.nbytes

    @property
    def tier(self) -> str:
        """Where its weights are stored: "disk", "pinned host", "host", or either of these shared with processes."""
        return self.storage.tier

    @property
    def device_bytes(self) -> int:
        """Bytes the group holds on the device now."""
        return 0 if self._transfer is None else self._transfer.nbytes

    @property
    def under_way(self) -> bool:
        """Whether somebody who needs the group now would have to wait for a disk."""
        return self._transfer is not None and self._transfer.under_way

    @property
    def is_trained(self) -> bool:
        """Whether a gradient is asked for some of its tensors."""
        return any(tensor.requires_grad for tensor in self._tensors)

    @property
    def has_gradients(self) -> bool:
        """Whether an optimizer is about to write some of its tensors, whose gradients are on the host."""
        return any(tensor.requires_grad and tensor.grad is not None for tensor in self._tensors)

    def prefetch(self, reserve: Reserve | None = None, stream: Any = None) -> bool:
        """Start bringing the group to the device. Idempotent.

        Args:
            reserve: asked whether so many bytes may be taken there.
            stream: the current stream, where the caller knows it.

        Returns:
            Whether it is on its way.
        """
        if self._transfer is not None:
            return True
        if self.comparisons:
            self.finish_comparisons()
        # Whether the tensors point there is looked at when they are used: a copy that was of no use is made anew then.
        if reserve is not None and not reserve(0 if self.in_place else self.storage.nbytes):
            return False
        transfer = self._transfer = self._copy_engine.start(self.storage, self._slab, stream)
        if transfer.slab is not None:
            self._copied = self._stored.versions()
            self._copy_engine.account(transfer.slab.nbytes, streams=self.streams and not self.cached)
        self.state = GroupState.PREFETCHED
        return True

    def onload(self, reserve: Reserve | None = None, stream: Any = None) -> None:
        """Point the group's parameters at the device, ordered after the transfer. Idempotent.

        Args:
            reserve, stream: as for :meth:`prefetch`.
        """
        if self.state is GroupState.IDLE:
            assert self._device is not None
            if not self._device.are_current():
                self.offload(compare=Compare.ALL)  # others pointed a parameter elsewhere since the last pass
        if self.state is GroupState.PREFETCHED:
            if not self._stored.are_current():
                self.discard()
            elif not self.in_place and self._copied != self._stored.versions():
                self.discard()  # written since, and what is on its way holds the old values
        if self.state is GroupState.OFFLOADED and not self._stored.are_current():
            self._store_anew()
        if self._transfer is None:
            self.prefetch(reserve, stream)
        transfer = self._transfer
        assert transfer is not None
        # Each time, for the stream may be another than the one that waited first; and before there are views, for a
        # thread that reads into the slab holds some of its own.
        transfer.wait(self, stream)
        if self.state is GroupState.PREFETCHED:
            slab = transfer.slab
            if slab is None:
                self._device = self._stored
            else:
                device = self._device = self._views.get(slab) or self._views_over(slab)
                device.point()
                self._seen = device.versions() if device.inner else self._copied
        self.state = GroupState.ONLOADED
        for held in self.dicts:
            held.__class__ = self.onloaded_dict

    def stop_using(self) -> None:
        """Nobody needs the onloaded group for now: whoever reads its tensors asks the engine again, for the reader's
        stream may be one that has not waited for the copy."""
        self.users = 0
        for held in self.dicts:
            held.__class__ = self.watched_dict

    def keep_on_device(self) -> None:
        """Leave the group on the device at the end of a pass. Its parameters point at the device copy, so that what is
        written to them from now on is written to what the next pass computes with."""
        if self.state is GroupState.PREFETCHED:
            self.onload()
        if self.state is GroupState.ONLOADED:
            self.state = GroupState.IDLE
            self.stop_using()

    def offload(self, *, compare: Compare = Compare.NONE) -> None:
        """Point the parameters back at their stored values and drop the device copy. What was written to it is
        stored first. Idempotent.

        Args:
            compare: which bytes are compared; for the others version counters are trusted.
        """
        state = self.state
        if state is GroupState.ONLOADED or state is GroupState.IDLE:
            device = self._device
            assert device is not None
            if compare is Compare.TRAINED and not self.is_trained:
                compare = Compare.NONE
            plain = compare is Compare.NONE and self._shows_writes
            if not self.in_place:
                if plain and device.are_unwritten(self._seen):
                    self._stored.point()
                else:
                    self._write_back(device, compare)
            self.state = GroupState.OFFLOADED
            self.stop_using()
        self.discard()

    def discard(self) -> None:
        """Drop a prefetched copy that nobody used."""
        transfer, state = self._transfer, self.state
        if transfer is None or state is GroupState.ONLOADED or state is GroupState.IDLE:
            return
        if state is GroupState.PREFETCHED:
            transfer.cancel()
        if transfer.slab is not None:
            self._copy_engine.account(-transfer.slab.nbytes, streams=self.streams and not self.cached)
        self._transfer = None
        self._slab = self._copy_engine.release(self.storage, transfer)
        if self._copy_engine.device.type == "cpu":
            self._views.clear()  # memory there cannot be given back while views of it exist
        self.state = GroupState.OFFLOADED

    def drop_retired_views(self) -> None:
        """Drop views of memory that was left to others."""
        self._views = {slab: views for slab, views in self._views.items() if not slab.retired}
        if self.state is GroupState.OFFLOADED and not self.in_place:
            self._device = None

    def owns_storage(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a view of the group's present device copy."""
        if self.in_place or self.state not in (GroupState.ONLOADED, GroupState.IDLE):
            return False
        return bool(tensor.untyped_storage()._cdata == self._slab_on_device.storage._cdata)

    @property
    def _slab_on_device(self) -> DeviceSlab:
        assert self._transfer is not None
        assert self._transfer.slab is not None
        return self._transfer.slab

    def to_plain_memory(self) -> None:
        """Move the weights to ordinary host memory, with nothing of the group left on them."""
        self.offload(compare=Compare.ALL)
        if self.storage.tier != "host":
            self.storage = self._pack(HostAllocator(pageable))

    # Stored values

    def cast(self, dtype_of: Callable[[str], torch.dtype | None]) -> None:
        """Cast the tensors of the offloaded group, and store them as they are then."""
        for entry in self.spec.entries:
            cast_tensor(entry.tensor, dtype_of(entry.names[0]))
        self._store_anew()

    def _pack(self, allocator: Allocator) -> WeightStorage:
        sources = [t.detach() for tensor in self._tensors for _, t in plain_tensors(tensor)]
        storage = allocator.store(self.spec.key, sources)
        packed = iter(storage.tensors)
        values = [map_plain(tensor.detach(), lambda _: next(packed)) for tensor in self._tensors]
        self._point_stored(values)
        self._slab = self._device = None
        self.in_place = self._copy_engine.uses_in_place(storage)
        return storage

    def _store_anew(self) -> None:
        """Follow others who pointed a tensor elsewhere: within the storage or to memory of their own."""
        with engine_mode():
            if all(self._is_stored(t) for tensor in self._tensors for _, t in plain_tensors(tensor)):
                self._point_stored([alias(tensor) for tensor in self._tensors])
                return
            self._copy_engine.drain()
            self.storage = self._pack(self._allocator)
            self.repacked += 1

    def _point_stored(self, values: list[torch.Tensor]) -> None:
        self._stored = Pointers(self._tensors, values)
        self._stored.point()
        # Buffers may be written without a trace, and tensors without a version counter.
        self._shows_writes = self._stored.tracked and not any(entry.is_buffer for entry in self.spec.entries)
        self._views.clear()

    def _is_stored(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() == 0 or self.storage.offset_of(tensor) is not None

    # The device copy

    def _views_over(self, slab: DeviceSlab) -> Pointers:
        with engine_mode():
            values = [map_plain(v, lambda t: self._view(slab.storage, t)) for v in self._stored.values]
            self._views = {known: views for known, views in self._views.items() if known.storage.nbytes()}
            views = self._views[slab] = Pointers(self._tensors, values, slab.storage)
            slab.note_views(views.inner)
        return views

    def _view(self, storage: torch.UntypedStorage, host: torch.Tensor) -> torch.Tensor:
        device = self._copy_engine.device
        if host.numel() == 0:
            return torch.empty_strided(host.size(), host.stride(), dtype=host.dtype, device=device)
        offset = self.storage.offset_of(host)
        assert offset is not None
        return view_of(storage, offset, host, device)

    def _write_back(self, device: Pointers, compare: Compare) -> None:
        """Copy to the host what was written on the device, and point every parameter at the host."""
        with engine_mode():
            try:
                adopted = self._store_writes(device, compare)
            except FileChangedError:
                adopted = self._rescue(device)
            for index, (tensor, value) in enumerate(zip(self._tensors, self._stored.values, strict=True)):
                if index not in adopted:
                    repoint(tensor, value)

    def _store_writes(self, device: Pointers, compare: Compare) -> set[int]:
        """Copy writes back; returns the places of tensors that point at other values on the host now."""
        slab = self._slab_on_device.bytes
        if compare is Compare.ALL:
            self._compare(slab, 0, slab.numel())
        adopted, trained = set(), []
        written = device.changed_since(self._seen)
        for index, entry in enumerate(self.spec.entries):
            if not device.points(index):
                if self._adopt(entry.tensor, self._stored.values[index]):
                    adopted.add(index)
                continue
            for _, plain in plain_tensors(entry.tensor):
                if not plain.numel():
                    continue
                extent = self.storage.extent_at(int(plain.storage_offset()) * plain.element_size())
                start, stop = extent.offset, extent.offset + extent.nbytes
                if entry.is_buffer or index in written:
                    self._copy_back(slab, start, stop)
                elif compare is Compare.TRAINED and entry.tensor.requires_grad:
                    trained.append((start, stop))
        self._compare_trained(slab, list(dict.fromkeys(trained)))
        return adopted

    def _compare_trained(self, slab: torch.Tensor, ranges: list[tuple[int, int]]) -> None:
        nbytes = sum(stop - start for start, stop in ranges)
        if 0 < nbytes <= MOST_DEFERRED and self._copy_engine.budget.limit is None:
            self.comparisons.append(Comparison.begin(slab, self.storage, ranges, self._note_written))
            return
        for start, stop in ranges:
            self._compare(slab, start, stop)

    def finish_comparisons(self) -> None:
        """Wait for comparisons that were put off; see [Note: one wait for all comparisons]."""
        with engine_mode():
            finish_comparisons(self.comparisons)
        self.comparisons.clear()

    def _note_written(self, nbytes: int) -> None:
        self.written_back += nbytes

    def _compare(self, slab: torch.Tensor, start: int, stop: int) -> None:
        piece = self._copy_engine.budget.scratch
        for first in range(start, stop, piece):
            last = min(first + piece, stop)
            if not are_stored(slab[first:last], self.storage, first):
                self._copy_back(slab, first, last)

    def _copy_back(self, slab: torch.Tensor, start: int, stop: int) -> None:
        self.storage.write(start, slab[start:stop])
        self.written_back += stop - start

    def _adopt(self, tensor: torch.Tensor, stored: torch.Tensor) -> bool:
        """Keep the values of a tensor that others gave new memory to, unless they are the old ones."""
        value = map_plain(alias(tensor), lambda t: t.to("cpu"))
        if same_bits(value, stored):
            return False
        self.written_back += plain_bytes(value)
        repoint(tensor, value)
        return True

    def _rescue(self, device: Pointers) -> set[int]:
        """Keep what the device still has of a file that was changed by others."""
        storage, host = self._slab_on_device.bytes.cpu().untyped_storage(), torch.device("cpu")

        def on_host(plain: torch.Tensor) -> torch.Tensor:
            return view_of(storage, int(plain.storage_offset()) * plain.element_size(), plain, host)

        for index, tensor in enumerate(self._tensors):
            if device.points(index):
                repoint(tensor, map_plain(alias(tensor), on_host))
        return set(range(len(self._tensors)))
