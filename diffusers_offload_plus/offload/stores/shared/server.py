"""Serving shared memory to other processes: the thread that hands it out, or waits to take that over.

[Note: the name lives on]
The memory has a name, which one process listens on. All others that have the memory stay connected to it. When it
releases the memory or ends, they notice the end of the connection; the first of them to take the name listens from
then on, and the others connect to it. So a process that comes later still finds the memory. One that comes in the
instant between makes memory of its own: that costs memory and is just as right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
import weakref

__all__ = ["FILLING", "READY", "Member", "connect", "listen", "receive"]

FILLING, READY = b"f", b"r"
_PAUSE = 0.01  # seconds
_TRIES = 100


class Member:
    """This process among those that have one shared memory: a thread that serves it to others, or waits to take over.

    :meth:`release` is safe in a finalizer, which may run at any point of any thread: it takes no lock.
    """

    def __init__(self, name: str, descriptor: int, connection: socket.socket, *, serves: bool) -> None:
        """Takes over ``descriptor`` and ``connection``, unless it raises.

        Args:
            name: what the memory is found by.
            descriptor: the memory, for others.
            connection: listens on the name, if this process ``serves``; else it leads to the process that does.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._name = name
        self._descriptor = descriptor
        self._connection = connection
        self._serves = serves
        self._ready = not serves
        self._released = False
        self._clients: list[socket.socket] = []
        self._lock = threading.Lock()  # of the clients, and of whether they know that the memory is filled
        connection.settimeout(None)
        threading.Thread(target=self._run, name="diffusers_offload_plus: shared memory", daemon=True).start()
        _MEMBERS.add(self)

    def announce(self) -> None:
        """Tell those who wait that the memory is filled."""
        with self._lock:
            self._ready = True
            for client in self._clients:
                with contextlib.suppress(OSError):  # it has gone
                    client.send(READY)

    def release(self) -> None:
        """This process no longer needs the memory. Others that have it go on, and one of them serves it."""
        self._released = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes everything

    def close(self) -> None:
        """Close everything without a word to those at the other end: other processes may have the same sockets."""
        for one in (self._connection, *self._clients):
            one.close()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _run(self) -> None:
        try:
            while not self._released:
                if self._serves:
                    self._answer()
                elif self._server_is_gone() and not self._take_over():
                    return
        finally:
            with self._lock:
                self.close()

    def _answer(self) -> None:
        """Hand the memory to the next process that connects."""
        try:
            client, _ = self._connection.accept()
        except OSError:
            time.sleep(_PAUSE)  # released; or too many files are open, and it will still be there
            return
        with self._lock:
            self._clients = [one for one in self._clients if not _has_gone(one)]
            try:
                _require_own(client)
                socket.send_fds(client, [READY if self._ready else FILLING], [self._descriptor])
                self._clients.append(client)
            except OSError:
                client.close()

    def _server_is_gone(self) -> bool:
        """Wait for the next word of the process that serves, or for its end."""
        try:
            state, descriptor = receive(self._connection, 16)
        except OSError:
            return True
        if descriptor is not None:  # the memory that is here already
            os.close(descriptor)
        return not state

    def _take_over(self) -> bool:
        """Serve, or connect to the process that does now; False if neither is possible."""
        self._connection.close()
        for _ in range(_TRIES):
            if self._released:
                return False
            with contextlib.suppress(OSError):
                listener = listen(self._name)
                self._connection = listener or connect(self._name, 1)
                self._connection.settimeout(None)
                self._serves = listener is not None
                return True
            time.sleep(_PAUSE)
        return False


def listen(name: str) -> socket.socket | None:
    """A socket that listens on the abstract ``name``; None if another process does.

    Raises:
        OSError: the system refuses.
    """
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            listener.bind(f"\0{name}")
            listener.listen(128)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        undo.pop_all()
        return listener


def connect(name: str, timeout: float) -> socket.socket:
    """A socket connected to the process that listens on the abstract ``name``; it waits ``timeout`` seconds at most.

    Raises:
        PermissionError: that process is of another user, or of another container.
        OSError: nobody listens, or there is no answer.
    """
    with contextlib.ExitStack() as undo:
        connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.settimeout(timeout)
        connection.connect(f"\0{name}")
        _require_own(connection)
        undo.pop_all()
        return connection


def receive(connection: socket.socket, nbytes: int) -> tuple[bytes, int | None]:
    """The next bytes from ``connection``, and the descriptor that came with them; None if none came. That is so as
    well where this process may open no more files: the system then drops what was sent.

    Raises:
        OSError: the connection fails.
    """
    state, descriptors, _, _ = socket.recv_fds(connection, nbytes, 1)
    for surplus in descriptors[1:]:
        os.close(surplus)
    if not descriptors:
        return state, None
    os.set_inheritable(descriptors[0], False)  # a program that is started later must not keep the memory
    return state, descriptors[0]


def _require_own(connection: socket.socket) -> None:
    # A process of another container has no process id here.
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", raw)
    if user != os.geteuid() or process == 0:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _has_gone(client: socket.socket) -> bool:
    # Clients say nothing, so what there is to read is their end.
    try:
        client.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    client.close()
    return True


def _close_all() -> None:
    # In a forked child: the sockets are the parent's, and no thread here would answer.
    for member in list(_MEMBERS):
        member._lock = threading.Lock()  # another thread of the parent may have held it
        member.close()


_MEMBERS: weakref.WeakSet[Member] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_all)
