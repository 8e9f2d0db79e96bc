"""Applies rules in several processes that share the project by having been forked from the one that built it."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["available_processes", "spread"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_MOST = 4  # what every process works out anew for itself grows faster than the time saved


def available_processes() -> int:
    """How many processes can work at the same time; 1 where this process cannot be forked safely."""
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST)


def spread(tasks: Sequence[Task], work: Callable[[Iterable[Task]], Result], processes: int) -> list[Result]:
    """Have ``work`` go through ``tasks`` in several processes, this one among them.

    Whoever is free takes the next task, so each process is handed an iterator that yields some of the tasks.

    Args:
        tasks: at most 255.
        work: what it returns has to be picklable.
        processes: how many; 1 forks none.

    Returns:
        What each process returned.

    Raises:
        RuntimeError: a process ended without a result; its own traceback is on stderr.
    """
    if processes <= 1 or len(tasks) <= 1 or len(tasks) > 255:
        return [work(tasks)]
    queue, feed = os.pipe()
    os.write(feed, bytes(range(len(tasks))))
    os.close(feed)
    answers = [_forked(tasks, work, queue) for _ in range(processes - 1)]
    try:
        results = [work(_taken(tasks, queue))]
        results += [_received(answer) for answer in answers]
    finally:
        os.close(queue)
        for child, answer in answers:
            with suppress(OSError):
                os.close(answer)
            os.waitpid(child, 0)
    return results


def _taken(tasks: Sequence[Task], queue: int) -> Iterator[Task]:
    # Reading one byte of a pipe is atomic: no two processes get the same one.
    while position := os.read(queue, 1):
        yield tasks[position[0]]


def _forked(tasks: Sequence[Task], work: Callable[[Iterable[Task]], Result], queue: int) -> tuple[int, int]:
    """A child that works, and where its answer can be read."""
    answer, back = os.pipe()
    child = os.fork()
    if child:
        os.close(back)
        return child, answer
    status = 1
    try:
        with open(back, "wb") as stream:
            pickle.dump(work(_taken(tasks, queue)), stream)
        status = 0
    except BaseException:  # nothing of the parent may run here, whatever went wrong
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _received(child: tuple[int, int]) -> Any:
    process, answer = child
    with open(answer, "rb", closefd=False) as stream:
        data = stream.read()
    if not data:
        raise RuntimeError(f"worker {process} ended without a result")
    return pickle.loads(data)
