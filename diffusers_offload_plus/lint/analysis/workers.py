"""Work spread over several processes, which are forked from this one and so share what it has built."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["available_processes", "spread"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_MOST = 4  # with more, the work that each process repeats for itself outweighs the time saved
_work: Callable[[int], Any]  # in a forked process


def available_processes() -> int:
    """How many processes can work at the same time; 1 where this process cannot be forked safely."""
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST)


def spread(tasks: Sequence[Task], work: Callable[[Task], Result], processes: int) -> list[Result]:
    """The results of ``work`` for all ``tasks``, in their order, from several processes.

    Args:
        work: a function whose results can be pickled; the tasks need not be picklable.
        processes: the number of processes to fork; 1 does all work in this one.

    Raises:
        RuntimeError: a process has been killed.
        Exception: whatever ``work`` raises, in any of the processes.
    """
    if processes <= 1 or len(tasks) <= 1:
        return [work(task) for task in tasks]
    # Imported here because many runs need one process only.
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    start = (lambda index: work(tasks[index]),)
    try:
        with ProcessPoolExecutor(processes, get_context("fork"), initializer=_start, initargs=start) as pool:
            futures = [pool.submit(_answer, index) for index in range(len(tasks))]
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process ended without a result; run again, or with fewer files") from error


def _start(work: Callable[[int], Any]) -> None:
    global _work
    _work = work


def _answer(index: int) -> Any:
    return _work(index)
