"""Processes of one machine that hold equal bytes find one another, and one hands them its memory.

[Note: meeting by name]
What is shared has a name: a digest of its content. The first process to listen on the abstract Unix socket of that
name is the one that makes the memory; others connect, and are handed the descriptor. The kernel settles who is first,
takes the name back when that process ends, in whatever way, and tells those who are connected. So nobody ever waits
for a process that does not come, nothing is left behind, and no rank has to take part because others do, as
with a collective.

[Note: the name lives on]
Whoever was handed the memory stays connected. When the process that listens is gone, one of the others listens in
its place, so a process that comes later still finds the memory. One that comes in the instant between makes memory
of its own: it costs room, and is as right.

Only processes of the same user that see one another's process ids trust one another: another user or another
container could give memory and change it later.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

from .memory import NotShared
from .server import READY, Member, is_own, listen, memory_server

__all__ = ["Offer", "rendezvous"]

PATIENCE = 60.0  # seconds without a sign of progress after which another process is no longer waited for
POLL = 0.2  # seconds
_RETRY = 0.01


class _Gone(Exception):
    """The process that listened is not there any more."""


class Offer:
    """Memory that another process makes or has made.

    Attributes:
        descriptor: of it; the taker closes it.
    """

    def __init__(self, connection: socket.socket, descriptor: int, ready: bool) -> None:
        self._connection = connection
        self._ready = ready
        self.descriptor = descriptor

    def wait(self, progress: Callable[[], int]) -> None:
        """Wait until it is filled.

        Args:
            progress: a number that grows while it is being filled.

        Raises:
            NotShared: there was no progress for a minute.
            ConnectionError: the process that was filling it is gone.
        """
        seen, deadline = -1, 0.0
        self._connection.settimeout(POLL)
        while not self._ready:
            found = progress()
            if found != seen:
                seen, deadline = found, time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise NotShared(f"the process that fills the shared memory made no progress for {PATIENCE:.0f} s")
            with contextlib.suppress(TimeoutError):
                if not self._connection.recv(1):
                    raise ConnectionError("the process that was filling the shared memory is gone")
                self._ready = True

    def keep(self, name: str, descriptor: int) -> Member:
        """Stay with the others; take over when the process that listens goes. ``descriptor`` is duplicated."""
        return memory_server().join(name, os.dup(descriptor), self._connection)

    def leave(self) -> None:
        """Not needed."""
        self._connection.close()


def rendezvous(name: str) -> socket.socket | Offer:
    """What others have under ``name``; a listening socket if this process is the first.

    Raises:
        NotShared: those who listen are not to be trusted, or do not answer.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            listener = listen(name)
        except OSError as error:
            raise NotShared(f"processes cannot meet through a Unix socket: {error.strerror}") from error
        if listener is not None:
            return listener
        try:
            return _ask(name)
        except _Gone:
            time.sleep(_RETRY)
    raise NotShared(f"no process that listens on '{name}' stayed for longer than a moment")


def _ask(name: str) -> Offer:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE)
        connection.connect(f"\0{name}")
        if not is_own(connection):
            raise NotShared("another user, or a process of another container, offers the same content")
        said, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not said:
            raise _Gone
        return Offer(connection, descriptors[0], said == READY)
    except TimeoutError:
        connection.close()
        raise NotShared(f"the process that has the shared memory did not answer for {PATIENCE:.0f} s") from None
    except (ConnectionError, _Gone):
        connection.close()
        raise _Gone from None
    except BaseException:
        connection.close()
        raise
