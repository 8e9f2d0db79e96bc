"""Copies from host memory and disk to one device.

[Note: compute waits on events]
A slab is allocated on the stream that will compute with it. The side stream first waits for that stream, so it
cannot overwrite memory the allocator has just taken back from it; the computing stream waits for the copy's event
before the first read. Freeing the slab afterwards is ordered by the computing stream alone. No step makes the
calling thread wait. With ``record_stream`` the slab belongs to the side stream instead, which need not wait for
computation; the allocator then learns of the use.
Memory that was used before by another group waits for that use alone; see [Note: slabs].
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..memory.device_budget import DeviceBudget, Usage
from ..memory.process import lockable_bytes
from ..memory.slabs import DeviceSlab
from ..memory.staging import Staging, pageable, pinned, registered
from ..modes import engine_mode
from ..policy import OffloadPolicy, supports_streams
from ..stores.disk.slab import DiskSlab
from ..stores.shared.memory import NotShared, SharedMemory
from ..stores.storage import WeightStorage
from .reader import Reader
from .timing import Bottleneck, StallTimer
from .transfer import Transfer, current_stream

__all__ = ["CopyEngine", "lockable"]


class CopyEngine:
    """The way from host and disk to one device: allocation, copies and, with streams, the side stream they run on.

    Attributes:
        copies: copies to the device started.
        bytes: bytes they moved.
        disk_bytes: bytes that were asked for from disk; the system may have had them in its cache.
        budget: the device memory it may take, which it may share with other links.
        usage: device bytes held by what has been copied; ``peak``: the most they were.
        streaming: device bytes of groups that come and go.
        externally_held: groups whose memory somebody still held when they were taken off the device.
        staging_limit: most bytes a staging buffer may take; groups that are larger pass it in several copies.
        unpinned: bytes of host memory that were to be pinned and could not be.
        stall_timer: measures how long computing waited for what has been copied.
        reading_host: a copy started since the last :meth:`drain` may still be reading host memory.
    """

    def __init__(self, policy: OffloadPolicy, budget: DeviceBudget) -> None:
        self.device = policy.device
        self.budget = budget
        self._non_blocking = policy.non_blocking
        self._record_stream = policy.record_stream
        self._pins = policy.pins_host_memory
        self._stream: Any = torch.Stream(device=self.device) if policy.use_stream else None
        self._index = self.device.index if supports_streams(self.device) else None
        # Memory that belongs to the side stream goes back to the allocator, which knows when other streams are done.
        self._pools = self.device.type == "cpu" or (budget.pools and not policy.record_stream)
        self._staging = Staging(self.device) if policy.use_stream and policy.low_cpu_mem_usage else None
        self._read_buffers = Staging(self.device, pin=self._stream is not None)
        self._reader = Reader()
        self.stall_timer = StallTimer(self.device, has_events=supports_streams(self.device))
        self.staging_limit: int | None = None
        self.unpinned = 0
        self.copies = 0
        self.bytes = 0
        self.disk_bytes = 0
        self.usage = Usage()
        self.peak = 0
        self.reading_host = False
        self.streaming = 0
        self.externally_held = 0
        self._unsent: DeviceSlab | None = None  # of the transfer that is being started
        # A model that is dropped while copies are under way takes the host memory with it that they read.
        weakref.finalize(self, _finish_all, self.device).atexit = False

    def account(self, nbytes: int, *, streams: bool = False) -> None:
        """Account for ``nbytes`` of device memory taken (negative: given back).

        Args:
            streams: they are of a group that comes and goes.
        """
        usage = self.usage
        usage.live += nbytes
        if streams:
            self.streaming += nbytes
        budget = self.budget
        if budget.auto is not None:
            budget.note_change(nbytes)
        budget.live += nbytes
        if nbytes > 0:
            self.peak = max(self.peak, usage.live)
            budget.peak = max(budget.peak, budget.live + budget.slabs.nbytes)

    @property
    def staging_wait_seconds(self) -> float:
        """How long has been waited for a staging buffer (only with ``low_cpu_mem_usage`` or the disk tier)."""
        return self._read_buffers.waited + (0.0 if self._staging is None else self._staging.waited)

    @property
    def staging_bytes(self) -> int:
        """Host memory that the staging buffers take."""
        return self._read_buffers.nbytes + (0 if self._staging is None else self._staging.nbytes)

    def allocate_host(self, nbytes: int) -> torch.Tensor:
        """Uninitialised host memory for one slab: uint8, shape ``(nbytes,)``, pinned if the policy pins."""
        if not self._pins or nbytes == 0:
            return pageable(nbytes)
        memory = pinned(nbytes, self.device)
        self.unpinned += 0 if memory.is_pinned() else nbytes
        return memory

    def register_host(self, memory: SharedMemory) -> torch.Tensor:
        """``memory``, pinned for this device: uint8. It may be read through the result, never written.

        Raises:
            NotShared: the device runtime cannot pin it.
        """
        if self.device.type != "cuda":
            raise NotShared(f"'{self.device.type}' devices have no way to pin memory that is there already")
        try:
            return registered(memory.map())
        except OSError as error:
            raise NotShared(
                f"{error.strerror} with error {error.errno} for {memory.nbytes} bytes{lockable()}; copies are slower. "
                "Raise the limit, or pass `share_host_copy=False`"
            ) from error

    def uses_in_place(self, storage: WeightStorage) -> bool:
        """Whether the device computes with ``storage`` where it lies."""
        return self.device.type == "cpu" and storage.is_aligned

    def stages(self, storage: WeightStorage) -> bool:
        """Whether ``storage`` was to be pinned and could not be, so that the reader thread copies it piece by piece
        into pinned buffers. A copy from pageable memory would make the calling thread wait."""
        return self._pins and self._stream is not None and storage.tier == "host"

    @property
    def current_stream(self) -> Any:
        """The stream that computes now; None where the device has none."""
        return None if self._index is None else current_stream(self._index)

    def start(self, storage: WeightStorage, own: DeviceSlab | None = None, stream: Any = None) -> Transfer:
        """Begin bringing the bytes of ``storage`` to the device.

        Args:
            own: the slab that :meth:`release` returned when they were last there.
            stream: the current stream, where the caller knows it.
        """
        self._unsent = None
        try:
            transfer = self._start(storage, own, stream)
        except BaseException:
            self._drop_unsent()
            raise
        self._unsent = None
        return transfer

    def _start(self, storage: WeightStorage, own: DeviceSlab | None, stream: Any) -> Transfer:
        memory = storage.in_memory
        if memory is None or self.stages(storage):
            return self._start_reading(storage, own)
        if self.device.type == "cpu" and storage.is_aligned:
            return Transfer(None, self.stall_timer)
        nbytes = storage.nbytes
        side = self._stream
        if side is None:
            slab = self._slab(nbytes, own, stream)
            self._count(nbytes, staged=False)
            start = self._mark()
            slab.bytes.copy_(memory, non_blocking=self._non_blocking)
            return self._blocking(slab, Bottleneck.LINK, start)
        if self._record_stream:
            with side:
                slab = self._slab(nbytes, own)
        else:
            slab = self._slab(nbytes, own, stream)
            if slab.free is None:
                side.wait_stream(slab.owner)
            else:
                self._wait_until_free(slab)
        self.reading_host = True
        if self._staging is None:
            self.copies += 1
            self.bytes += nbytes
        else:
            self._count(nbytes, staged=True)
        with side:
            if self._staging is None:
                slab.bytes.copy_(memory, non_blocking=True)
            else:
                self._through(
                    self._staging, slab.bytes, lambda part, start: part.copy_(memory[start : start + len(part)])
                )
        event = side.record_event(slab.copied)
        return Transfer(slab, self.stall_timer, index=self._index, event=event, side_owned=self._record_stream)

    def release(self, storage: WeightStorage, transfer: Transfer) -> DeviceSlab | None:
        """The device is done with ``storage`` for now, and nobody needs what ``transfer`` brought.

        Returns:
            The slab without its memory, for the next time; None if it went to the pool, or somebody else holds it.
        """
        if isinstance(storage, DiskSlab) and self.uses_in_place(storage):
            storage.release()
        slab = transfer.slab
        if slab is None:
            return None
        if slab.is_held_elsewhere:
            self.externally_held += 1
            self.budget.slabs.retire(slab)
            return None
        if self._pools:
            self.budget.give(slab)
            return None
        slab.streams.clear()
        slab.storage.resize_(0)
        if self.budget.auto is not None:
            self.budget.memory_given_back()
        return slab

    @property
    def read_wait_seconds(self) -> float:
        """How long the calling thread has waited for disk."""
        return self._reader.waited

    def drain(self) -> None:
        """Wait until no copy reads host memory any more; call before host memory of a slab is given up."""
        self._reader.drain()
        if self._stream is not None:
            self._stream.synchronize()
        self.reading_host = False

    def finish_work_on(self, owner: nn.Module | Iterable[torch.Tensor]) -> None:
        """Wait for everything that was issued on our device and on those of some tensors, on whatever stream.

        Call before tensors are taken over that others may still be copying: a hook whose pass was interrupted, a copy
        to the host that nobody has waited for.
        """
        tensors = (*owner.parameters(), *owner.buffers()) if isinstance(owner, nn.Module) else owner
        for device in {self.device, *(tensor.device for tensor in tensors)}:
            _finish_all(device)

    def close(self) -> None:
        """End the reader thread."""
        self.drain()
        self._reader.close()
        self.stall_timer.reset()

    def _mark(self) -> Any:
        return self.stall_timer.mark() if self.stall_timer.watching else None

    def _blocking(self, slab: DeviceSlab, bottleneck: Bottleneck, start: Any) -> Transfer:
        """A transfer that was made on the computing stream itself, from the mark ``start`` to now."""
        blocked = None if start is None else (bottleneck, start, self.stall_timer.mark())
        if self._index is not None:
            current = current_stream(self._index)
            slab.streams[current.stream_id] = current
        return Transfer(slab, self.stall_timer, index=self._index, blocked=blocked)

    def _start_reading(self, storage: WeightStorage, own: DeviceSlab | None) -> Transfer:
        on_disk = storage.in_memory is None
        if isinstance(storage, DiskSlab) and self.uses_in_place(storage):
            self.disk_bytes += storage.nbytes
            reading = self._reader.submit(storage.populate, _what(storage))
            return Transfer(None, self.stall_timer, reading=reading)
        slab = self._slab(storage.nbytes, own)
        self.disk_bytes += storage.nbytes if on_disk else 0
        self._count(storage.nbytes, staged=self.device.type != "cpu")
        if self.device.type == "cpu":
            reading = self._reader.submit(functools.partial(storage.read_into, slab.bytes), _what(storage))
            return Transfer(slab, self.stall_timer, reading=reading)
        if self._stream is None:
            start = self._mark()
            self._through(self._read_buffers, slab.bytes, storage.read_into)
            return self._blocking(slab, Bottleneck.DISK, start)
        self.reading_host = True
        self._wait_until_free(slab)
        work = functools.partial(self._read_and_copy, storage, slab)
        reading = self._reader.submit(work, _what(storage))
        source = Bottleneck.DISK if on_disk else Bottleneck.LINK
        return Transfer(slab, self.stall_timer, index=self._index, reading=reading, source=source)

    def _slab(self, nbytes: int, own: DeviceSlab | None, stream: Any = None) -> DeviceSlab:
        """Device memory of this size that the current stream may use, or may once the slab's ``free`` has happened."""
        slab = self._unsent = self.budget.slabs.take(nbytes) if self._pools else own
        if slab is None:
            with engine_mode():
                slab = self._unsent = DeviceSlab(nbytes, self.device)
        elif slab.free is not None:
            return slab
        elif not slab.storage.nbytes():
            slab.storage.resize_(nbytes)
        if self._index is not None:
            slab.owner = stream or current_stream(self._index)
        return slab

    def _drop_unsent(self) -> None:
        """Give the memory back that the transfer got which could not be started."""
        slab, self._unsent = self._unsent, None
        if slab is not None:
            self.drain()  # a part of it may be under way
            if self.device.type != "cpu":
                slab.storage.resize_(0)  # groups have views of it

    def _wait_until_free(self, slab: DeviceSlab) -> None:
        """Let the side stream wait until it may overwrite ``slab``; see [Note: compute waits on events]."""
        if slab.free is None:
            self._stream.wait_stream(slab.owner)
        else:
            for event in slab.free:
                self._stream.wait_event(event)

    def _read_and_copy(self, storage: WeightStorage, slab: DeviceSlab) -> Any:
        with self._stream:
            try:
                self._through(self._read_buffers, slab.bytes, storage.read_into)
            except BaseException:
                self._stream.synchronize()  # the memory is given up, and a part of the copy may be under way
                raise
            return self._stream.record_event(slab.copied)

    def _count(self, nbytes: int, *, staged: bool) -> None:
        self.copies += -(-nbytes // self._chunk(nbytes)) if staged else 1
        self.bytes += nbytes

    def _chunk(self, nbytes: int) -> int:
        return max(1, min(nbytes, self.staging_limit or nbytes))

    def _through(self, staging: Staging, slab: torch.Tensor, fill: Callable[[torch.Tensor, int], object]) -> None:
        """Fill ``slab`` by way of staging buffers, on the current stream."""
        size = self._chunk(slab.numel())
        for start in range(0, slab.numel(), size):
            target = slab[start : start + size]
            part = staging.acquire(target.numel())
            fill(part, start)
            target.copy_(part, non_blocking=self._stream is not None)
            if self._stream is not None:
                staging.release(self._stream.record_event())


def _finish_all(device: torch.device) -> None:
    if supports_streams(device):
        torch.accelerator.synchronize(device)


def lockable() -> str:
    """In brackets, how much memory may be locked; nothing where there is no limit."""
    limit = lockable_bytes()
    return "" if limit is None else f" ({limit} bytes may be locked, see `ulimit -l`)"


def _what(storage: WeightStorage) -> str:
    places = [file.path for file in storage.files()] if isinstance(storage, DiskSlab) else ["host memory"]
    return f"{storage.nbytes} bytes of {', '.join(places)}"
