"""The thread that reads weights from disk before they are needed.

[Note: reading ahead]
Weights that are stored on disk are read by a thread of its own, which also starts the copy to the device. Whoever
needs the bytes waits for the thread first. That is the one wait of a steady pass; it is timed, and errors of reading
are raised there. Where the CPU computes, weights are used where they are mapped, and the thread only brings them into
memory; those that lie badly aligned are read into memory of their own. A forked process has no such thread: it does
what the thread had still to do when somebody needs it, and its next submission starts a thread.
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
    """One piece of work for the reader, and its result."""

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
        """Whether :meth:`finish` would return at once; in a forked process it does the work itself."""
        return self._process != os.getpid() or self.future.done()

    def finish(self) -> Any:
        """Wait for the work and return its result, or raise its error. A disk that does not answer is logged."""
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
        """The result, if the work is under way or done; else it is never done. Errors are dropped."""
        try:
            if self._process != os.getpid():
                return None
            if self.future.cancel() or self.future.exception() is not None:
                return None
            return self.future.result()
        finally:
            self._work = None


class Reader:
    """A thread that does its work in the order it was submitted; it starts with the first submission.

    Attributes:
        waited: seconds that callers of :meth:`Reading.finish` have waited.
    """

    def __init__(self) -> None:
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._under_way: list[concurrent.futures.Future[Any]] = []
        self._process = os.getpid()
        self.waited = 0.0

    def submit(self, work: Callable[[], Any], what: str) -> Reading:
        """Have the thread do ``work``; ``what`` names it in the log if it takes too long."""
        self._notice_fork()
        if self._executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="offload-plus-reader")
        reading = Reading(self, work, what)
        reading.future = self._executor.submit(reading)
        self._under_way = [future for future in self._under_way if not future.done()]
        self._under_way.append(reading.future)
        return reading

    def drain(self) -> None:
        """Wait until all submitted work is done."""
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
