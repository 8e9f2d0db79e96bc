"""Host-to-device copies as values: start, wait, drop.

[Note: compute waits on events]
A slab is allocated on the stream that will compute with it. The side stream first waits for that stream, so it
cannot overwrite memory the allocator has just taken back from it; the computing stream waits for the copy's event
before the first read. Freeing the slab afterwards is ordered by the computing stream alone. No step makes the
calling thread wait. With ``record_stream`` the slab belongs to the side stream instead, which need not wait for
computation; the allocator then learns of the use.
Memory that was used before by another group waits for that use alone; see [Note: slots].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..memory.device_budget import DeviceBudget
from ..memory.process import lockable_bytes
from ..memory.slots import Slot, held_alone
from ..memory.staging import Staging, pinned, registered
from ..policy import OffloadPolicy, supports_streams
from ..stores.disk.slab import DiskSlab
from ..stores.shared.memory import NotShared, SharedMemory
from ..stores.storage import WeightStorage
from .reader import Reader, Reading
from .timing import Bottleneck, StallTimer

__all__ = ["CopyEngine", "Transfer", "lockable"]


class Transfer:
    """A group's bytes on, or on their way to, the device.

    Attributes:
        slab: uint8 tensor of shape ``(nbytes,)`` on the device, empty for what is used in place; its values may be
            read after :meth:`wait`.
    """

    __slots__ = ("_blocked", "_event", "_reading", "_side_owned", "_stream", "_waits", "foreign", "slab")

    def __init__(
        self,
        slab: torch.Tensor,
        waits: StallTimer,
        *,
        event: Any = None,
        stream: Any = None,
        side_owned: bool = False,
        reading: Reading | None = None,
        blocked: tuple[Bottleneck, Any, Any] | None = None,
    ) -> None:
        self.slab = slab
        self._waits = waits
        self._blocked = blocked  # computing waited while it was made, on this link from this mark to that
        self._event = event
        self._stream = stream
        self._side_owned = side_owned
        self._reading = reading
        self.foreign = side_owned  # another stream than the one it was allocated on uses it

    @property
    def under_way(self) -> bool:
        """Whether a thread is still reading it from disk."""
        return self._reading is not None and not self._reading.done

    def wait(self, group: Hashable = None) -> None:
        """Order the current stream after the copy. Idempotent; blocks the calling thread only while disk is read.

        Args:
            group: whose weights they are, for the record of who made computing wait; None: nobody computes.

        Raises:
            DiskTierError: reading failed.
        """
        waits, link = self._waits, Bottleneck.DISK if self.under_way else Bottleneck.LINK
        start = waits.mark() if self._is_noted(group) else None
        if self._reading is not None:
            self._event = self._reading.finish()
            self._reading = None
        if self._event is None:
            self._note_blocked(group, link, start)
            return
        current = torch.accelerator.current_stream(self.slab.device)
        current.wait_event(self._event)
        if start is None:
            waits.give_back(self._event)
        else:
            waits.note(group, link, start, self._event)
        self._event = None
        if self._side_owned or current != self._stream:
            self.slab.record_stream(current)
            self.foreign = True

    def _is_noted(self, group: Hashable) -> bool:
        pending = self._event is not None or self.under_way or (self._reading is not None and self._stream is not None)
        return pending and group is not None and self._waits.watching

    def _note_blocked(self, group: Hashable, link: Bottleneck, start: Any) -> None:
        if start is not None:
            self._waits.note(group, link, start, self._waits.mark())
        elif self._blocked is not None and group is not None and self._waits.watching:
            self._waits.note(group, *self._blocked)
        self._blocked = None

    def cancel(self) -> None:
        """Make it safe to free a slab nobody will read."""
        if self._reading is not None:
            self._event = self._reading.cancel()
            self._reading = None
        if not self._side_owned:
            self.wait()


class CopyEngine:
    """The way from host and disk to one device: allocation, copies and, with streams, the side stream they run on.

    Attributes:
        copies: copies to the device started.
        bytes: bytes they moved.
        disk_bytes: bytes that were asked for from disk; the system may have had them in its cache.
        budget: the device memory it may take, which it may share with other links.
        live: device bytes held by what has been copied.
        peak: highest value of ``live``.
        streaming: device bytes of groups that come and go.
        externally_held: groups whose memory somebody still held when they were taken off the device.
        staging_limit: most bytes a staging buffer may take; groups that are larger pass it in several copies.
        unpinned: bytes of host memory that were to be pinned and could not be.
        waits: how long computing waited for what has been copied.
        reading_host: a copy started since the last :meth:`drain` may still be reading host memory.
    """

    def __init__(self, policy: OffloadPolicy, budget: DeviceBudget) -> None:
        self.device = policy.device
        self.budget = budget
        self._non_blocking = policy.non_blocking
        self._record_stream = policy.record_stream
        self._pins = policy.pins_host_memory
        self._stream: Any = torch.Stream(device=self.device) if policy.use_stream else None
        self._staging = Staging(self.device) if policy.use_stream and policy.low_cpu_mem_usage else None
        self._read_buffers = Staging(self.device, pin=self._stream is not None)
        self._reader = Reader()
        self.stall_timer = StallTimer(self.device, has_events=supports_streams(self.device))
        self.staging_limit: int | None = None
        self.unpinned = 0
        self.copies = 0
        self.bytes = 0
        self.disk_bytes = 0
        self.live = 0
        self.peak = 0
        self.reading_host = False
        self.streaming = 0
        self.externally_held = 0

    def hold(self, nbytes: int) -> None:
        """Account for ``nbytes`` of device memory taken (negative: given back)."""
        self.live += nbytes
        self.peak = max(self.peak, self.live)
        self.budget.hold(nbytes)

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
            return torch.empty(nbytes, dtype=torch.uint8)
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

    def uses_in_place(self, home: WeightStorage) -> bool:
        """Whether the device computes with ``home`` where it lies."""
        return self.device.type == "cpu" and home.is_aligned

    def start(self, home: WeightStorage) -> Transfer:
        """Begin bringing the bytes of ``home`` to the device."""
        memory = home.in_memory
        if memory is None:
            return self._start_reading(home)
        if self.uses_in_place(home):
            return Transfer(torch.empty(0, dtype=torch.uint8), self.stall_timer)
        self._count(home, staged=self._staging is not None)
        if self._stream is None:
            slab = self._slot(memory.numel()).slab
            start = self._mark()
            slab.copy_(memory, non_blocking=self._non_blocking)
            return self._blocking(slab, Bottleneck.LINK, start)
        self.reading_host = True
        compute = torch.accelerator.current_stream(self.device)
        if not self._record_stream:
            slab, free = self._slot(memory.numel())
            self._stream.wait_stream(compute) if free is None else self._stream.wait_event(free)
        with self._stream:
            if self._record_stream:
                slab = torch.empty(memory.numel(), dtype=torch.uint8, device=self.device)
            if self._staging is None:
                slab.copy_(memory, non_blocking=True)
                event = self._stream.record_event(self.stall_timer.event())
            else:
                event = self._through(
                    self._staging, slab, lambda part, start: part.copy_(memory[start : start + len(part)])
                )
        return Transfer(slab, self.stall_timer, event=event, stream=compute, side_owned=self._record_stream)

    def let_go(self, home: WeightStorage, transfer: Transfer) -> None:
        """The device is done with ``home`` for now, and nobody reads what ``transfer`` brought."""
        if isinstance(home, DiskSlab) and self.uses_in_place(home):
            home.release()
        if not transfer.slab.numel() or not (self.budget.pools or self.device.type == "cpu"):
            return
        if not held_alone(transfer.slab):
            self.externally_held += 1
        elif not transfer.foreign:
            stream = self._stream and torch.accelerator.current_stream(self.device)
            self.budget.give(Slot(transfer.slab, stream and stream.record_event()))

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

    def close(self) -> None:
        """End the reader thread."""
        self.drain()
        self._reader.close()
        self.stall_timer.reset()

    def _mark(self) -> Any:
        return self.stall_timer.mark() if self.stall_timer.watching else None

    def _blocking(self, slab: torch.Tensor, link: Bottleneck, start: Any) -> Transfer:
        """A transfer that was made on the computing stream itself, from the mark ``start`` to now."""
        blocked = None if start is None else (link, start, self.stall_timer.mark())
        return Transfer(slab, self.stall_timer, blocked=blocked)

    def _start_reading(self, home: WeightStorage) -> Transfer:
        self.disk_bytes += home.nbytes
        if isinstance(home, DiskSlab) and self.uses_in_place(home):
            reading = self._reader.submit(home.populate, _what(home))
            return Transfer(torch.empty(0, dtype=torch.uint8), self.stall_timer, reading=reading)
        slab, free = self._slot(home.nbytes)
        self._count(home, staged=self.device.type != "cpu")
        if self.device.type == "cpu":
            reading = self._reader.submit(functools.partial(home.read_into, slab), _what(home))
            return Transfer(slab, self.stall_timer, reading=reading)
        if self._stream is None:
            start = self._mark()
            self._through(self._read_buffers, slab, home.read_into)
            return self._blocking(slab, Bottleneck.DISK, start)
        self.reading_host = True
        compute = torch.accelerator.current_stream(self.device)
        work = functools.partial(self._read_and_copy, home, slab, free or compute.record_event())
        return Transfer(slab, self.stall_timer, stream=compute, reading=self._reader.submit(work, _what(home)))

    def _slot(self, nbytes: int) -> Slot:
        """Device memory for a slab: a free slot, or fresh memory that the present stream may use at once."""
        slot = self.budget.slots.take(nbytes)
        return slot or Slot(torch.empty(nbytes, dtype=torch.uint8, device=self.device), None)

    def _read_and_copy(self, home: WeightStorage, slab: torch.Tensor, before: Any) -> Any:
        self._stream.wait_event(before)
        with self._stream:
            return self._through(self._read_buffers, slab, home.read_into)

    def _count(self, home: WeightStorage, *, staged: bool) -> None:
        self.copies += -(-home.nbytes // self._chunk(home.nbytes)) if staged else 1
        self.bytes += home.nbytes

    def _chunk(self, nbytes: int) -> int:
        return max(1, min(nbytes, self.staging_limit or nbytes))

    def _through(self, staging: Staging, slab: torch.Tensor, fill: Callable[[torch.Tensor, int], object]) -> Any:
        """Fill ``slab`` by way of staging buffers, on the current stream; returns the event of the last copy, if there
        are streams."""
        size, event = self._chunk(slab.numel()), None
        for start in range(0, slab.numel(), size):
            target = slab[start : start + size]
            part = staging.acquire(target.numel())
            fill(part, start)
            target.copy_(part, non_blocking=self._stream is not None)
            if self._stream is not None:
                event = self._stream.record_event()
                staging.release(event)
        # The buffers keep the event of their last copy; that of the whole is handed round.
        return event and self._stream.record_event(self.stall_timer.event())


def lockable() -> str:
    """In brackets, how much memory may be locked; nothing where there is no limit."""
    limit = lockable_bytes()
    return "" if limit is None else f" ({limit} bytes may be locked, see `ulimit -l`)"


def _what(home: WeightStorage) -> str:
    files = home.files() if isinstance(home, DiskSlab) else []
    return f"{home.nbytes} bytes of {', '.join(file.path for file in files)}"
