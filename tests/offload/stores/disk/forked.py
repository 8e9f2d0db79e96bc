"""Processes forked from one that has everything imported: a fault may kill them, and they start in milliseconds."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.offload.stores.disk.children"])
PATIENCE = 120  # seconds


@dataclasses.dataclass
class Outcome:
    """How a process ended: with a value, with an error (its type's name and text), or by a signal."""

    value: Any = None
    error: str = ""
    text: str = ""
    signal: str = ""

    def expect(self) -> Any:
        """The value, or the failure of the test."""
        assert not self.error, f"{self.error}: {self.text}"
        assert not self.signal, self.signal
        return self.value


class Child:
    """A running process; what it sends before it ends is read with `hear`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._ours, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_run, args=(theirs, function, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def hear(self) -> Any:
        """The next thing it says."""
        assert self._ours.poll(PATIENCE), "the process says nothing"
        return self._ours.recv()

    def kill(self) -> bool:
        """End it the hard way; whether it was still at work."""
        self.process.kill()
        self.process.join(PATIENCE)
        return self.process.exitcode == -signal.SIGKILL

    def outcome(self) -> Outcome:
        """How it ended."""
        try:
            found = self.hear()
        except (EOFError, ConnectionResetError):
            self.process.join(PATIENCE)
            code = self.process.exitcode or 0
            return Outcome(signal=signal.Signals(-code).name if code < 0 else f"exit {code}")
        self.process.join(PATIENCE)
        assert isinstance(found, Outcome)
        return found


def run(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Call `function(say, *arguments)` in a process of its own; `say` sends something to `Child.hear`."""
    return Child(function, *arguments).outcome()


def stop() -> None:
    """End the process that the others are forked from."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _run(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        found = Outcome(value=function(pipe.send, *arguments))
    except BaseException as error:
        found = Outcome(error=type(error).__name__, text=str(error))
    pipe.send(found)
