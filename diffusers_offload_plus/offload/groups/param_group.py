"""One group at run time: where it is stored, its device copy, and the pointing of parameters at either."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from ..memory.slabs import DeviceSlab
from ..memory.staging import pageable
from ..model.inventory import GroupSpec, Residency
from ..model.pointers import Pointers
from ..model.references import StoredMemory, TensorReferences
from ..model.tensors import alias, cast_tensor, map_plain, plain_tensors
from ..modes import engine_mode
from ..stores.host import HostAllocator
from ..stores.layout import view_of
from ..stores.storage import Allocator, WeightStorage
from ..transfer.copy_engine import CopyEngine
from ..transfer.transfer import Transfer
from .comparisons import Compare
from .writes import DeviceCopy, Writes

__all__ = ["GroupState", "ParamGroup"]


Reserve = Callable[[int], bool]


class GroupState(enum.Enum):
    """Where the parameters of a group point."""

    OFFLOADED = "offloaded"
    PREFETCHED = "prefetched"  # at the stored values; the device copy is there, or on its way
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
        writes: finds what was written to the device copy, and stores it.
        references: to its tensors.
        repacked: how often tensors that others had pointed elsewhere were stored anew.
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
        self.repacked = 0
        self.writes = Writes(copy_engine.budget)
        self.state = GroupState.OFFLOADED
        self.dicts: list[Any] = []
        self._tensors = [entry.tensor for entry in spec.entries]
        self.references = TensorReferences(self._tensors)
        self._copy_engine = copy_engine
        self._allocator = allocator
        self._transfer: Transfer | None = None
        self._slab: DeviceSlab | None = None  # of this group alone, for its next use
        self._views: dict[DeviceSlab, Pointers] = {}
        self._device: Pointers | None = None  # the views that the parameters point at, or did last
        self._copied: list[int] = []  # versions of the stored values that are on their way
        self._seen: list[int] = []  # versions of the parameters when they were onloaded
        self._has_idled = False  # at its present device copy, so others may have written there without a trace
        self.storage = self._pack(allocator)

    @property
    def nbytes(self) -> int:
        """Bytes one transfer of the group moves."""
        return self.storage.nbytes

    @property
    def tier(self) -> str:
        """Where its weights are stored: "disk", "pinned host", "host", or either of these shared with processes.
        "staged host": they could not be pinned, and pass through pinned buffers."""
        return "staged host" if self._copy_engine.stages(self.storage) else self.storage.tier

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
        if self.writes.comparisons:
            self.writes.finish_comparisons()
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
            self._has_idled = True
            self.stop_using()

    def keep_for_next_pass(self) -> None:
        """Leave the device copy for the next pass, and point the parameters at the stored values. Nothing waits for a
        copy that is under way. Only for a group that others have no reference to."""
        if self.state is not GroupState.ONLOADED:
            return
        device = self._device
        assert device is not None
        if self.in_place or self._has_idled or not (self._shows_writes and device.are_unwritten(self._seen)):
            self.offload()
            return
        self._stored.point()
        self._copied = self._stored.versions()
        self.state = GroupState.PREFETCHED
        self.stop_using()

    @property
    def memory_is_held(self) -> bool:
        """Whether other code has a reference to the stored memory of its weights; see
        [Note: who may write a weight between two passes]."""
        return self._memory.is_held(pointed=self.state in (GroupState.OFFLOADED, GroupState.PREFETCHED))

    def expect_references(self, others: Counter[int]) -> None:
        """Record how many references to its tensors are known; ``others``: those of the engine and the modules, by
        ``id``."""
        pointers = {id(one): one for one in (self._stored, self._device, *self._views.values()) if one is not None}
        self.references.expect(others, list(pointers.values()))

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
            if self._has_idled:
                compare = Compare.ALL
            elif compare is Compare.TRAINED and not self.is_trained:
                compare = Compare.NONE
            plain = compare is Compare.NONE and self._shows_writes
            if not self.in_place:
                if plain and device.are_unwritten(self._seen):
                    self._stored.point()
                else:
                    slab, entries = self._slab_on_device.bytes, self.spec.entries
                    copy = DeviceCopy(entries, device, self._seen, self._stored, self.storage, slab)
                    self.writes.store(copy, compare)
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
        self._has_idled = False
        self._slab = self._copy_engine.release(self.storage, transfer)
        if self._copy_engine.device.type == "cpu":
            self._views.clear()  # memory there cannot be given back while views of it exist
            self.references.forget()
        self.state = GroupState.OFFLOADED

    def drop_retired_views(self) -> None:
        """Drop views of memory that was left to others."""
        self._views = {slab: views for slab, views in self._views.items() if not slab.retired}
        self.references.forget()
        if self.state is GroupState.OFFLOADED and not self.in_place:
            self._device = None

    def owns_storage(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a view of the group's present device copy."""
        if self.in_place or self.state not in (GroupState.ONLOADED, GroupState.IDLE):
            return False
        return bool(tensor.untyped_storage()._cdata == self._slab_on_device.storage._cdata)

    def places_at(self, offset: int) -> tuple[int, ...]:
        """The places of the tensors that have the byte at ``offset`` of the group's storage, or share memory with one
        that has it."""
        start = self.storage.extent_at(offset).offset
        places = self._places_at.get(start)
        if places is None:
            places = self._places_at[start] = tuple(
                place for place, value in enumerate(self._stored.values) if start in self._extents_of(value)
            )
        return places

    def _extents_of(self, stored: torch.Tensor) -> set[int]:
        offsets = [self.storage.offset_of(plain) for _, plain in plain_tensors(stored) if plain.numel()]
        return {self.storage.extent_at(offset).offset for offset in offsets if offset is not None}

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
        self._point_stored(values, are_new=True)
        self._slab = self._device = None
        self.in_place = self._copy_engine.uses_in_place(storage)
        return storage

    def _store_anew(self) -> None:
        """Follow others who pointed a tensor elsewhere: within the storage or to memory of their own."""
        with engine_mode():
            if all(self._is_stored(t) for tensor in self._tensors for _, t in plain_tensors(tensor)):
                self._point_stored([alias(tensor) for tensor in self._tensors], are_new=False)
                return
            self._copy_engine.drain()
            self._copy_engine.finish_work_on(self._tensors)
            self.storage = self._pack(self._allocator)
            self.repacked += 1

    def _point_stored(self, values: list[torch.Tensor], *, are_new: bool) -> None:
        self._stored = Pointers(self._tensors, values)
        self._memory = StoredMemory(self._stored, is_new=are_new)
        self.references.forget()
        self._stored.point()
        # Buffers may be written without a trace, and tensors without a version counter.
        self._shows_writes = self._stored.tracked and not any(entry.is_buffer for entry in self.spec.entries)
        self._views.clear()
        self._places_at: dict[int, tuple[int, ...]] = {}  # by the first byte of each extent

    def _is_stored(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() == 0 or self.storage.offset_of(tensor) is not None

    # The device copy

    def _views_over(self, slab: DeviceSlab) -> Pointers:
        with engine_mode():
            values = [map_plain(v, lambda t: self._view(slab.storage, t)) for v in self._stored.values]
            self._views = {known: views for known, views in self._views.items() if known.storage.nbytes()}
            views = self._views[slab] = Pointers(self._tensors, values, slab.storage)
            slab.note_views(views.inner)
            self.references.forget()
        return views

    def _view(self, storage: torch.UntypedStorage, host: torch.Tensor) -> torch.Tensor:
        device = self._copy_engine.device
        if host.numel() == 0:
            return torch.empty_strided(host.size(), host.stride(), dtype=host.dtype, device=device)
        offset = self.storage.offset_of(host)
        assert offset is not None
        return view_of(storage, offset, host, device)
