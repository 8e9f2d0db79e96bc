"""One group's bytes on their way to the device, as a value: the memory, and the event that makes it readable."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..memory.slabs import DeviceSlab
from .reader import Reading
from .timing import Bottleneck, StallTimer

__all__ = ["Transfer", "current_stream"]

current_stream: Callable[[int], Any] = torch.accelerator.current_stream


class Transfer:
    """A group's bytes on, or on their way to, the device.

    Attributes:
        slab: the device memory; None for what is used where it is stored. Its values may be read after :meth:`wait`.
    """

    __slots__ = ("_blocked", "_event", "_index", "_reading", "_side_owned", "_source", "_stall_timer", "slab")

    def __init__(
        self,
        slab: DeviceSlab | None,
        stall_timer: StallTimer,
        *,
        index: int | None = None,
        event: Any = None,
        side_owned: bool = False,
        reading: Reading | None = None,
        source: Bottleneck = Bottleneck.DISK,
        blocked: tuple[Bottleneck, Any, Any] | None = None,
    ) -> None:
        self.slab = slab
        self._index = index  # of the device; None: it has no streams
        self._stall_timer = stall_timer
        self._blocked = blocked  # what computing waited for while it was made, and the marks before and after
        self._event = event
        self._side_owned = side_owned  # the memory belongs to the side stream
        self._reading = reading
        self._source = source  # what a thread reads from

    @property
    def nbytes(self) -> int:
        """Bytes of device memory it takes."""
        return 0 if self.slab is None else self.slab.nbytes

    @property
    def under_way(self) -> bool:
        """Whether a thread is still reading it."""
        return self._reading is not None and not self._reading.done

    def wait(self, group: Hashable = None, stream: Any = None) -> None:
        """Order the current stream after the copy. Idempotent; blocks the calling thread only while disk is read.

        Args:
            group: whose weights they are, for the record of who made computing wait; None: nobody computes.
            stream: the current stream, where the caller knows it.

        Raises:
            DiskTierError: reading failed.
        """
        timer, start, bottleneck = self._stall_timer, None, Bottleneck.LINK
        if not timer.watching and self._reading is None:
            if self.slab is not None:
                self._order(stream)
            return
        if timer.watching and group is not None:
            if self.under_way:
                bottleneck = self._source
            if self._reading is not None or (self._event is not None and self.slab and not self.slab.streams):
                start = timer.mark()
        if self._reading is not None:
            self._event = self._reading.finish()
            self._reading = None
        waited = self._order(stream)
        if start is not None and (waited or not timer.has_events):
            timer.note(group, bottleneck, start, timer.mark())
        elif self._blocked is not None and group is not None and timer.watching:
            timer.note(group, *self._blocked)
        self._blocked = None

    def _order(self, stream: Any) -> bool:
        """Let the current stream read the slab; False if it may already."""
        slab = self.slab
        if slab is None or self._index is None:
            return False
        current = stream or current_stream(self._index)
        streams, ready = slab.streams, current.stream_id
        if ready in streams:
            return False
        if self._event is not None:
            current.wait_event(slab.copied)
        elif streams:
            current.wait_stream(next(iter(streams.values())))
        if self._side_owned or streams or slab.owner.stream_id != ready:
            slab.bytes.record_stream(current)
        streams[ready] = current
        return True

    def cancel(self) -> None:
        """Make it safe to free memory that nobody will read."""
        if self._reading is not None:
            self._event = self._reading.cancel()
            self._reading = None
        if not self._side_owned and self._event is not None:
            self._order(None)
