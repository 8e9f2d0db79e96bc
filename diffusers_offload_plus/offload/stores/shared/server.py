"""The thread that answers for the memory this process shares: hands it to others, and takes over when they go."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable

__all__ = ["FILLING", "READY", "Member", "MemoryServer", "is_own", "listen", "memory_server"]

logger = logging.getLogger("diffusers_offload_plus")

FILLING, READY = b"f", b"r"
_PAUSE = 0.01  # seconds
_TRIES = 100


class Member:
    """What this process has to do with one shared memory.

    Every call returns at once, from any thread and from a finalizer: the memory_server does the work.
    """

    def __init__(self, owner: MemoryServer, name: str, descriptor: int, *, ready: bool) -> None:
        self.name = name
        self.descriptor = descriptor
        self.ready = ready
        self.listener: socket.socket | None = None
        self.connection: socket.socket | None = None
        self.clients: set[socket.socket] = set()
        self._owner = owner

    def announce(self) -> None:
        """The memory is filled: tell those who wait."""
        self._owner.call(self._owner.announce, self)

    def release(self) -> None:
        """This process no longer has the memory. Others that have it go on, and one of them answers for it."""
        self._owner.call(self._owner.release, self)


class MemoryServer:
    """One thread for all shared memories of the process."""

    def __init__(self) -> None:
        self._calls: collections.deque[tuple[Callable[[Member], None], Member]] = collections.deque()
        self._parts: set[Member] = set()
        self._inner, self._outer = socket.socketpair()
        self._inner.setblocking(False)
        self._outer.setblocking(False)
        # Not epoll: its state would be shared with a forked child.
        self._selector = selectors.PollSelector()
        self._selector.register(self._inner, selectors.EVENT_READ, self._obey)
        threading.Thread(target=self._run, name="diffusers_offload_plus: shared memory", daemon=True).start()

    def offer(self, name: str, descriptor: int, listener: socket.socket) -> Member:
        """Hand ``descriptor`` to whoever connects to ``listener``; both are taken over."""
        part = Member(self, name, descriptor, ready=False)
        part.listener = listener
        self.call(self._watch, part)
        return part

    def join(self, name: str, descriptor: int, connection: socket.socket) -> Member:
        """Answer for ``descriptor`` once whoever is at the other end of ``connection`` is gone; both are taken
        over."""
        part = Member(self, name, descriptor, ready=True)
        part.connection = connection
        self.call(self._watch, part)
        return part

    def call(self, action: Callable[[Member], None], part: Member) -> None:
        """Have the thread do it."""
        self._calls.append((action, part))
        with contextlib.suppress(OSError):  # a full buffer wakes it as well; after a fork there is no thread
            self._outer.send(b"!")

    def abandon(self) -> None:
        """In a forked child: the sockets are the parent's, and nobody here would answer."""
        for part in self._parts:
            self._close(part)
        self._inner.close()
        self._outer.close()

    # In the thread

    def announce(self, part: Member) -> None:
        """Tell those who wait."""
        part.ready = True
        for client in list(part.clients):
            try:
                client.send(READY)
            except OSError:
                self._dismiss(part, client)

    def release(self, part: Member) -> None:
        """Close everything."""
        self._parts.discard(part)
        for one in (part.listener, part.connection, *part.clients):
            self._forget(one)
        self._close(part)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                try:
                    key.data()
                except Exception:  # whatever becomes of one memory, the others have to be answered for
                    logger.exception("Shared host memory: a process could not be answered.")

    def _obey(self) -> None:
        self._inner.recv(4096)
        while self._calls:
            action, part = self._calls.popleft()
            action(part)

    def _watch(self, part: Member) -> None:
        self._parts.add(part)
        if part.listener is not None:
            part.listener.setblocking(False)
            self._selector.register(part.listener, selectors.EVENT_READ, lambda: self._accept(part))
        if part.connection is not None:
            connection = part.connection
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(part, connection))

    def _accept(self, part: Member) -> None:
        if part.listener is None or part.listener.fileno() < 0:
            return
        try:
            client, _ = part.listener.accept()
        except OSError:
            time.sleep(_PAUSE)  # too many open files, say: it will still be there
            return
        try:
            client.setblocking(False)
            if not is_own(client):
                client.close()
                return
            socket.send_fds(client, [READY if part.ready else FILLING], [part.descriptor])
        except OSError:
            client.close()
            return
        part.clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._dismiss(part, client))

    def _dismiss(self, part: Member, client: socket.socket) -> None:
        # Clients say nothing, so what there is to read is their end.
        part.clients.discard(client)
        self._forget(client)

    def _hear(self, part: Member, connection: socket.socket) -> None:
        if connection.fileno() < 0:
            return
        said = b""
        descriptors: list[int] = []
        try:
            said, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            pass
        for descriptor in descriptors:  # the memory that is here already
            os.close(descriptor)
        if not said:
            self._forget(connection)
            self._succeed(part)

    def _succeed(self, part: Member) -> None:
        # All who were connected try, and one comes first; the others connect to it.
        part.connection = None
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                part.listener = listen(part.name)
                if part.listener is None:
                    part.connection = _connected(part.name)
                self._watch(part)
                return
            time.sleep(_PAUSE)

    def _forget(self, one: socket.socket | None) -> None:
        if one is not None and one.fileno() >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(one)
            one.close()

    @staticmethod
    def _close(part: Member) -> None:
        for one in (part.listener, part.connection, *part.clients):
            if one is not None:
                one.close()
        descriptor, part.descriptor = part.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def listen(name: str) -> socket.socket | None:
    """A socket that listens on the abstract ``name``; None if another process does.

    Raises:
        OSError: the system refuses.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"\0{name}")
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return listener


def is_own(connection: socket.socket) -> bool:
    """Whether a process of the same user, in a container that this one sees, is at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", raw)
    return bool(user == os.geteuid() and process != 0)


def _connected(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(1)
        connection.connect(f"\0{name}")
        if not is_own(connection):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    except OSError:
        connection.close()
        raise
    return connection


def memory_server() -> MemoryServer:
    """That of this process."""
    global _SERVER
    with _LOCK:
        if _SERVER is None:
            _SERVER = MemoryServer()
        return _SERVER


def _forked() -> None:
    global _SERVER, _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it
    if _SERVER is not None:
        _SERVER.abandon()
        _SERVER = None


_SERVER: MemoryServer | None = None
_LOCK = threading.Lock()
os.register_at_fork(after_in_child=_forked)
