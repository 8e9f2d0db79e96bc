"""How processes of one machine that have equal bytes find one another.

[Note: rendezvous by name]
What is shared has a name: a digest of its content. The first process to listen on the abstract Unix socket of that
name makes the memory. Others connect to it and are handed the descriptor. The kernel decides who is first, frees the
name when that process ends, in whatever way, and tells those who are connected. So nobody waits for a process that
does not come, nothing is left behind, and no rank has to take part because others do, as it would in a collective.

Only processes of the same user that see one another's process ids trust one another: another user or another
container could offer memory and change it later.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from .memory import NotShared
from .server import FILLING, READY, connect, listen, receive

__all__ = ["Offer", "rendezvous"]

PATIENCE = 60.0  # seconds without a sign of progress after which another process is no longer waited for
POLL = 0.2  # seconds
_RETRY = 0.01


class Offer(NamedTuple):
    """Memory that another process makes or has made.

    Attributes:
        connection: to the process that serves it.
        descriptor: the memory; whoever takes the offer closes it.
        ready: it is filled.
    """

    connection: socket.socket
    descriptor: int
    ready: bool

    def wait(self, progress: Callable[[], int]) -> None:
        """Wait until the memory is filled.

        Args:
            progress: a number that grows while it is being filled.

        Raises:
            NotShared: there was no progress for a minute, or the connection fails.
            ConnectionError: the process that was filling it is gone.
        """
        seen, deadline = -1, 0.0
        while not self.ready and not self._hears():
            found = progress()
            if found != seen:
                seen, deadline = found, time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise NotShared(f"the process that fills the shared memory made no progress for {PATIENCE:.0f} s")

    def _hears(self) -> bool:
        """Whether the other process says within a moment that the memory is filled."""
        try:
            self.connection.settimeout(POLL)
            said = self.connection.recv(1)
        except TimeoutError:
            return False
        except ConnectionError:
            raise
        except OSError as error:
            raise NotShared(f"the process that fills the shared memory is not heard: {_explain(error)}") from error
        if not said:
            raise ConnectionError("the process that was filling the shared memory is gone")
        return True


def rendezvous(name: str) -> socket.socket | Offer:
    """What others offer under ``name``; a listening socket if this process is the first.

    Raises:
        NotShared: those who listen are not to be trusted, or do not answer.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            listener = listen(name)
        except OSError as error:
            raise NotShared(f"processes cannot meet through a Unix socket: {_explain(error)}") from error
        if listener is not None:
            return listener
        with contextlib.suppress(ConnectionError, BlockingIOError):  # it has gone since, or many ask at once
            return _ask(name)
        time.sleep(_RETRY)
    raise NotShared(f"no process that listens on '{name}' stayed for longer than a moment")


def _ask(name: str) -> Offer:
    try:
        connection = connect(name, PATIENCE)
    except PermissionError:
        raise NotShared("another user, or a process of another container, offers the same content") from None
    except (ConnectionError, BlockingIOError):
        raise
    except OSError as error:
        raise NotShared(f"the process that has the shared memory cannot be reached: {_explain(error)}") from error
    with contextlib.ExitStack() as undo:
        undo.enter_context(connection)
        offer = _offer(connection)
        undo.pop_all()
        return offer


def _offer(connection: socket.socket) -> Offer:
    try:
        state, descriptor = receive(connection, 1)
    except TimeoutError:
        raise NotShared(f"the process that has the shared memory did not answer for {PATIENCE:.0f} s") from None
    except (ConnectionError, BlockingIOError):
        raise
    except OSError as error:
        raise NotShared(f"the process that has the shared memory is not heard: {_explain(error)}") from error
    if not state:
        raise ConnectionError("the process that listened is gone")
    if descriptor is None:
        raise NotShared(
            "the shared memory that another process sent did not arrive, as happens where too many files are open "
            "(`ulimit -n`)"
        )
    if state not in (READY, FILLING):
        os.close(descriptor)
        raise NotShared(f"the process that has the shared memory answers {state!r}, which means nothing here")
    return Offer(connection, descriptor, state == READY)


def _explain(error: OSError) -> str:
    return error.strerror or str(error)
