"""The thread that reads from disk ahead of whoever computes.

[Note: reading ahead]
What rests on disk is read by a thread of its own, and that thread starts the copy to the device. Whoever needs the
bytes waits for the thread first: the one wait of a steady pass, timed as such, and the place where errors of the
reading come up. Where the CPU computes, weights are used where they are mapped, and the thread only brings them into
memory; those that lie badly aligned are read into memory of their own. A forked process has no such thread: what was
under way there is read by whoever needs it, and the next reading starts a thread.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Reader", "Reading"]

STALL_SECONDS = 30.0

logger = logging.getLogger("diffusers_offload_plus")


class Reading:
    """One piece of work for the reader, and what came of it."""

    def __init__(self, reader: Reader, work: Callable[[], Any], what: str) -> None:
        self._reader = reader
        self._what = what
        self._work: Callable[[], Any] | None = work
        self._process = os.getpid()
        self.future: concurrent.futures.Future[Any]

    def __call__(self) -> Any:
        work = self._work
        return None if work is None else work()

    @property
    def done(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._process != os.getpid() or self.future.done()

    def finish(self) -> Any:
        """Wait for it and return, or raise, what came of it. While nothing comes, that is said in the log."""
        begin = time.perf_counter()
        try:
            if self._process != os.getpid():
                return self()
            while True:
                concurrent.futures.wait([self.future], timeout=STALL_SECONDS)
                if self.future.done():
                    return self.future.result()
                waited = time.perf_counter() - begin
                logger.warning("Waiting for %.0f s for %s: the disk does not answer.", waited, self._what)
        finally:
            self._reader.waited += time.perf_counter() - begin
            self._work = None  # and the memory it was to fill: the executor may hold on to this object for a while

    def cancel(self) -> Any:
        """What came of it if it ran already; else it never will. Errors are nobody's any more."""
        try:
            if self._process != os.getpid():
                return None
            if self.future.cancel() or self.future.exception() is not None:
                return None
            return self.future.result()
        finally:
            self._work = None


class Reader:
    """A thread for readings, one after the other; it starts with the first.

    Attributes:
        waited: seconds that callers of :meth:`Reading.finish` have waited.
    """

    def __init__(self) -> None:
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._under_way: list[concurrent.futures.Future[Any]] = []
        self._process = os.getpid()
        self.waited = 0.0

    def submit(self, work: Callable[[], Any], what: str) -> Reading:
        """Have ``work`` done by the thread; ``what`` names it where it takes too long."""
        self._notice_fork()
        if self._executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="offload-plus-reader")
        reading = Reading(self, work, what)
        reading.future = self._executor.submit(reading)
        self._under_way = [future for future in self._under_way if not future.done()]
        self._under_way.append(reading.future)
        return reading

    def drain(self) -> None:
        """Wait until nothing is being read."""
        self._notice_fork()
        concurrent.futures.wait(self._under_way)
        self._under_way.clear()

    def close(self) -> None:
        """End the thread."""
        self._notice_fork()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _notice_fork(self) -> None:
        if self._process != os.getpid():
            self._process, self._executor = os.getpid(), None
            self._under_way.clear()
