"""Stores weights in host memory that processes with equal weights share; see docs/ranks.md.

[Note: one truth, many views]
A weight is a view of a private mapping of the shared bytes. Nobody changes those after they are filled. A write to a
weight gives the process pages of its own, as on the disk tier. So no other process sees what a process does to its
weights, and what it sees itself is what the mapping shows. The bytes as the device runtime knows them stand in for the
mapping only where the kernel says that no page of the range is private to the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
import xxhash

from ..host import Allocate, HostAllocator, HostSlab, in_host_memory
from ..layout import SlabLayout, bytes_at, lay_out
from ..mapped_file import FileRange, check_mapped, private_bytes, view_bytes
from .memory import NotShared, SharedMemory
from .rendezvous import Offer, rendezvous
from .server import Member

__all__ = ["Register", "SharedAllocator", "SharedSlab"]

logger = logging.getLogger("diffusers_offload_plus")

NAME = "diffusers_offload_plus.1"  # the number changes with what is hashed, and with how memory is offered
Register = Callable[[SharedMemory], "torch.Tensor"]  # raises NotShared


class SharedSlab(HostSlab):
    """Tensors that are views of shared memory."""

    def __init__(self, sources: Sequence[torch.Tensor], layout: SlabLayout, memory: SharedMemory, offset: int) -> None:
        """Views like ``sources``, whose bytes lie in ``memory`` from ``offset`` on as ``layout`` says."""
        packed = torch.empty(0, dtype=torch.uint8, device="cpu")
        packed.set_(memory.view.storage(offset, layout.nbytes), 0, (layout.nbytes,), (1,))
        super().__init__(sources, layout, packed)
        self._memory = memory
        self._offset = offset

    @property
    def in_memory(self) -> torch.Tensor:
        """The packed bytes as the device runtime knows them, if it does and they are what the tensors show."""
        registered = self._memory.registered
        if registered is None or self._memory.view.is_private(self._offset, self.nbytes):
            return self.bytes
        return registered[self._offset : self._offset + self.nbytes]

    @property
    def tier(self) -> str:
        """Where the weights are stored, as reports call it."""
        return "shared host" if self._memory.registered is None else "pinned shared host"

    @property
    def private_bytes(self) -> int:
        """Bytes of extents that this process has written since, and so holds in memory of its own."""
        view, begin = self._memory.view, self._offset
        return private_bytes(FileRange(view, begin + extent.offset, extent.nbytes) for extent in self.layout.extents)

    def write(self, start: int, values: torch.Tensor) -> None:
        """Overwrite the packed bytes from ``start`` on, for this process alone. Equal bytes are not written: that
        would cost memory."""
        host = values.cpu()
        if not torch.equal(self.part(start, start + host.numel()), host):
            super().write(start, host)


class _Group(NamedTuple):
    sources: Sequence[torch.Tensor]
    offset: int  # in the shared memory
    nbytes: int


class SharedAllocator:
    """Stores the weights of one model in shared memory; where that cannot be, in memory of the process.

    Attributes:
        decisions: why weights are not shared, or not known to the device runtime.
    """

    def __init__(self, label: str, allocate: Allocate, register: Register | None) -> None:
        """Nothing is allocated yet.

        Args:
            label: the component's name, for messages.
            allocate: allocates memory of the process's own.
            register: makes shared memory known to the device runtime; None: there is no use for that.
        """
        self.decisions: list[str] = []
        self._label = label
        self._private = HostAllocator(allocate)
        self._register = register
        self._groups: dict[Hashable, _Group] = {}
        self._memory: SharedMemory | None = None
        self._member: Member | None = None
        self._fills = False

    def prepare(self, groups: Sequence[tuple[Hashable, Sequence[torch.Tensor]]]) -> None:
        """Announce all groups that :meth:`store` is called for next, in this order: they are shared as a whole.
        ``groups`` are keys for :meth:`store` and the tensors."""
        self.forget()
        offset = 0
        for key, sources in groups:
            nbytes = lay_out(sources).nbytes
            self._groups[key] = _Group(sources, offset, nbytes)
            offset += nbytes

    def store(self, key: Hashable, sources: Sequence[torch.Tensor]) -> HostSlab:
        """A slab in shared memory if ``sources`` were prepared under ``key``, else in memory of the process.

        Values that others gave a tensor since are this process's own: they are not shared.
        """
        group = self._groups.get(key)
        slab: HostSlab | None = None
        if group is not None and group.nbytes:
            try:
                slab = self._share(sources, group, self._memory or self._join())
            except NotShared as reason:
                self._decide(f"host memory is not shared with other processes: {reason}")
                if self._fills or self._memory is None:
                    self.forget()
        if slab is None:
            slab = self._private.store(key, sources)
        self._groups.pop(key, None)
        if not self._groups:
            self._finish()
        return slab

    def forget(self) -> None:
        """Drop what was prepared and not stored: others may change the tensors from now on. Processes that wait for
        memory that was being filled make their own."""
        self._groups.clear()
        if self._member is not None:
            self._member.release()
        self._memory = self._member = None

    def _decide(self, reason: str) -> None:
        if reason not in self.decisions:
            logger.warning("'%s': %s.", self._label, reason)
            self.decisions.append(reason)

    def _join(self) -> SharedMemory:
        """The memory for all groups: that of another process with equal bytes, or new memory, to be filled."""
        name, nbytes = self._content_name(), sum(group.nbytes for group in self._groups.values())
        while True:
            found = rendezvous(name)
            self._fills = not isinstance(found, Offer)
            with contextlib.ExitStack() as undo:
                connection = undo.enter_context(found.connection if isinstance(found, Offer) else found)
                try:
                    if isinstance(found, Offer):
                        memory = SharedMemory.receive(found.descriptor, nbytes)
                        found.wait(memory.reserved)
                    else:
                        memory = SharedMemory.create(nbytes)
                except ConnectionError:  # somebody has to fill memory anew
                    continue
                descriptor = memory.duplicate()
                undo.callback(os.close, descriptor)
                try:
                    member = Member(name, descriptor, connection, serves=self._fills)
                except RuntimeError as error:
                    raise NotShared(f"the thread that offers it to others does not start: {error}") from error
                undo.pop_all()
            weakref.finalize(memory, member.release).atexit = False
            self._memory, self._member = memory, member
            return memory

    def _content_name(self) -> str:
        """A name for the bytes of all groups: the same for equal tensors in equal groups."""
        whole = xxhash.xxh3_128(f"{self._register is not None}".encode())
        for group in self._groups.values():
            tensors, layout = in_host_memory(group.sources)
            for tensor, index in zip(tensors, layout.extent_of, strict=True):
                start = 0 if index is None else tensor.data_ptr() - layout.extents[index].start
                shape = f"{tensor.dtype} {tuple(tensor.size())} {tensor.stride()} {index} {start};"
                whole.update(shape.encode())
            for extent in layout.extents:
                whole.update(view_bytes(bytes_at(extent.start, extent.nbytes)))
        return f"{NAME}.{os.geteuid()}.{whole.hexdigest()}"

    def _share(self, sources: Sequence[torch.Tensor], group: _Group, memory: SharedMemory) -> SharedSlab:
        tensors, layout = in_host_memory(sources)
        if layout.nbytes != group.nbytes:
            raise NotShared("weights were replaced while they were being stored")
        if self._fills:
            memory.reserve(group.offset, layout.nbytes)
        for extent in layout.extents:
            offset = group.offset + extent.offset
            if self._fills:
                memory.fill(offset, extent.start, extent.nbytes)
            elif not memory.holds(extent.start, offset, extent.nbytes):
                raise NotShared("the bytes that another process offers are not the same")
        check_mapped(sources)  # changed while it was read
        return SharedSlab(tensors, layout, memory, group.offset)

    def _finish(self) -> None:
        memory, member = self._memory, self._member
        self._memory = self._member = None
        if memory is None or member is None:
            return
        try:
            if self._register is not None:
                memory.registered = self._register(memory)
            elif self._fills:
                memory.forbid_writing()
        except NotShared as reason:
            self._decide(f"shared host memory is not pinned: {reason}")
        if self._fills:
            member.announce()
