"""Weights at rest in host memory that processes with equal weights share; see docs/ranks.md.

[Note: one truth, many views]
A weight is a view of a private mapping of the shared bytes. Nobody changes those after they are filled; a write to a
weight gives the process pages of its own, as on the disk tier. So whatever a process does to its weights, the
others do not see it, and what it sees itself is what the mapping shows. The bytes as the device runtime knows them
stand in for the mapping only where the kernel says that no page of the range is the process's own.
"""

from __future__ import annotations

import logging
import os
import socket
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
import xxhash

from ..host import Allocate, HostAllocator, HostSlab, Slab
from ..layout import SlabLayout, lay_out
from ..mapped_file import check_mapped
from .memory import NotShared, SharedMemory, bytes_at
from .rendezvous import Offer, rendezvous
from .server import Member, memory_server

__all__ = ["Register", "SharedAllocator", "SharedSlab"]

logger = logging.getLogger("diffusers_offload_plus")

NAME = "diffusers_offload_plus.1"  # the number changes with what is hashed, and with how memory is handed over
Register = Callable[[SharedMemory], "torch.Tensor"]  # raises NotShared


class SharedSlab(Slab):
    """Tensors that are views of shared memory, with an ``UntypedStorage`` each."""

    def __init__(self, sources: Sequence[torch.Tensor], layout: SlabLayout, memory: SharedMemory, offset: int) -> None:
        """Views for ``sources``, whose bytes lie in ``memory`` from ``offset`` on as ``layout`` says."""
        packed = torch.empty(0, dtype=torch.uint8)
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
        """Where they rest, as reports call it."""
        return "shared host" if self._memory.registered is None else "pinned shared host"

    @property
    def private_bytes(self) -> int:
        """Bytes of extents that were written since, and so are in memory of the process."""
        return sum(
            extent.nbytes
            for extent in self.layout.extents
            if self._memory.view.is_private(self._offset + extent.offset, extent.nbytes)
        )

    def write(self, start: int, values: torch.Tensor) -> None:
        """Overwrite bytes of the slab, for this process alone. What is the same is not written: it would cost
        memory."""
        target, host = self.bytes[start : start + values.numel()], values.cpu()
        if not torch.equal(target, host):
            target.copy_(host)


class _Group(NamedTuple):
    sources: Sequence[torch.Tensor]
    offset: int  # in the shared memory
    nbytes: int


class SharedAllocator:
    """Homes in shared memory for the weights of one model; where they cannot be shared, in memory of the process.

    Attributes:
        decisions: why weights are not shared, or not known to the device runtime.
    """

    def __init__(self, label: str, allocate: Allocate, register: Register | None) -> None:
        """Nothing is allocated yet.

        Args:
            label: the component's name, for messages.
            allocate: for homes of the process's own.
            register: makes shared memory known to the device runtime; None: there is no use for that.
        """
        self.decisions: list[str] = []
        self._label = label
        self._private = HostAllocator(allocate)
        self._register = register
        self._groups: dict[Hashable, _Group] = {}
        self._memory: SharedMemory | None = None
        self._part: Member | None = None
        self._fills = False

    def prepare(self, groups: Sequence[tuple[Hashable, Sequence[torch.Tensor]]]) -> None:
        """What is to be placed next, all of it, in this order: it is shared as a whole. ``groups`` are keys for
        :meth:`place` and the tensors."""
        self.forget()
        offset = 0
        for key, sources in groups:
            nbytes = lay_out(sources).nbytes
            self._groups[key] = _Group(sources, offset, nbytes)
            offset += nbytes

    def place(self, key: Hashable, sources: Sequence[torch.Tensor]) -> Slab:
        """The home of ``sources``: shared if they were prepared under ``key``, and others have or get equal ones."""
        group = self._groups.get(key)
        home: Slab | None = None
        if group is not None and group.nbytes:
            try:
                if self._memory is None:
                    self._meet()
                home = self._share(sources, group)
            except NotShared as reason:
                self._decide(f"host memory is not shared with other processes: {reason}")
                if self._fills or self._memory is None:
                    self.forget()
        if home is None:  # of values that this process alone has, where others re-pointed a tensor since
            home = self._private.place(key, sources)
        self._groups.pop(key, None)
        if not self._groups:
            self._finish()
        return home

    def forget(self) -> None:
        """What was prepared and not placed may be changed by others from now on. Those who wait for memory that was
        being filled make their own."""
        self._groups.clear()
        memory, self._memory = self._memory, None
        part, self._part = self._part, None
        if part is not None and memory is not None:
            part.release()

    def _decide(self, reason: str) -> None:
        if reason not in self.decisions:
            logger.warning("'%s': %s.", self._label, reason)
            self.decisions.append(reason)

    def _meet(self) -> None:
        nbytes, name = self._content()
        while self._memory is None:
            found = rendezvous(name)
            joined = self._take(found, name, nbytes) if isinstance(found, Offer) else self._make(found, name, nbytes)
            if joined is not None:
                self._memory, self._part = joined
                weakref.finalize(self._memory, self._part.release).atexit = False

    def _make(self, listener: socket.socket, name: str, nbytes: int) -> tuple[SharedMemory, Member]:
        try:
            memory = SharedMemory.create(nbytes)
        except BaseException:
            listener.close()
            raise
        self._fills = True
        return memory, memory_server().offer(name, os.dup(memory.descriptor), listener)

    def _take(self, found: Offer, name: str, nbytes: int) -> tuple[SharedMemory, Member] | None:
        try:
            memory = SharedMemory.receive(found.descriptor, nbytes)
            found.wait(memory.reserved)
        except ConnectionError:
            found.leave()
            return None  # somebody has to fill memory anew
        except BaseException:
            found.leave()
            raise
        self._fills = False
        return memory, found.keep(name, memory.descriptor)

    def _content(self) -> tuple[int, str]:
        """How many bytes there are, and a name for them: equal for equal tensors in equal groups."""
        whole = xxhash.xxh3_128(f"{self._register is not None}".encode())
        nbytes = 0
        for group in self._groups.values():
            tensors, layout = _in_host_memory(group.sources)
            nbytes += layout.nbytes
            for tensor, index in zip(tensors, layout.extent_of, strict=True):
                start = 0 if index is None else tensor.data_ptr() - layout.extents[index].start
                shape = f"{tensor.dtype} {tuple(tensor.size())} {tensor.stride()} {index} {start};"
                whole.update(shape.encode())
            for extent in layout.extents:
                whole.update(bytes_at(extent.start, extent.nbytes))
        return nbytes, f"{NAME}.{os.geteuid()}.{whole.hexdigest()}"

    def _share(self, sources: Sequence[torch.Tensor], group: _Group) -> SharedSlab:
        memory, offset = self._memory, group.offset
        assert memory is not None
        tensors, layout = _in_host_memory(sources)
        if layout.nbytes != group.nbytes:
            raise NotShared("weights were replaced while they were given a home")
        if self._fills:
            memory.reserve(offset, layout.nbytes)
        for extent in layout.extents:
            if self._fills:
                memory.fill(offset + extent.offset, extent.start, extent.nbytes)
            elif not memory.view.equals(extent.start, offset + extent.offset, extent.nbytes):
                raise NotShared("the bytes that another process offers are not the same")
        check_mapped(sources)  # changed while it was read
        return SharedSlab(tensors, layout, memory, offset)

    def _finish(self) -> None:
        memory, part = self._memory, self._part
        self._memory = self._part = None
        if memory is None or part is None:
            return
        try:
            if self._register is not None:
                memory.registered = self._register(memory)
            elif self._fills:
                memory.forbid_writing()
        except NotShared as reason:
            self._decide(f"shared host memory is not pinned: {reason}")
        if self._fills:
            part.announce()


def _in_host_memory(sources: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], SlabLayout]:
    if any(t.device.type != "cpu" for t in sources):
        sources = HostSlab(sources, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8)).tensors
    check_mapped(sources)
    return sources, lay_out(sources)
