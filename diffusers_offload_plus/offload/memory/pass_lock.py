"""The lock that lets one pass run at a time, and the threads that work for that pass.

[Note: threads of one pass]
A thread that calls ``backward`` waits while threads of autograd run it. Activation checkpointing makes them call
modules again. If the waiting thread is in the middle of a pass (inside ``onloaded``, or in a forward that computes
gradients itself), what they call is a part of that pass, whichever engine it belongs to. If they waited for the lock,
nobody would ever go on.
"""

from __future__ import annotations

import sys
import threading
from threading import get_ident
from types import TracebackType

import torch

__all__ = ["PassLock", "works_for"]


def works_for(owner: int | None) -> bool:
    """Whether the calling thread runs a backward that the thread ``owner`` waits for."""
    if owner is None or torch._C._current_graph_task_id() == -1:
        return False
    frame = sys._current_frames().get(owner)
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            return True
        frame = frame.f_back
    return False


class PassLock:
    """A reentrant lock. Threads that work for the one that has it do not wait for it, only for one another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._for_workers = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        self._depths: dict[int, int] = {}  # of threads that work for the owner

    def __enter__(self) -> None:
        me = get_ident()
        if self._owner != me and self._owner is not None and works_for(self._owner):
            self._for_workers.acquire()
            self._depths[me] = self._depths.get(me, 0) + 1
            return
        self._lock.acquire()
        self._owner = me
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        me = get_ident()
        if me in self._depths:
            self._depths[me] -= 1
            if not self._depths[me]:
                del self._depths[me]
            self._for_workers.release()
            return
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._lock.release()
