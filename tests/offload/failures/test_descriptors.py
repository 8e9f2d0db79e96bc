"""Out of descriptors: a private copy instead of shared memory, an error up front on disk, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.stores.shared import allocator, rendezvous
from diffusers_offload_plus.offload.stores.shared.memory import NotShared, SharedMemory
from diffusers_offload_plus.offload.stores.shared.server import FILLING, READY, receive
from tests.offload.stores.disk import forked
from tests.offload.stores.disk.children import Say
from tests.offload.stores.disk.setup import assert_right, assert_state, twin_of
from tests.offload.stores.shared.programs import decisions
from tests.support.models import Stack, assert_plain, seeded

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _processes() -> Iterator[None]:
    yield
    forked.stop()


def leave(count: int) -> list[int]:
    """Have this process open all the files that it may but ``count``."""
    soft = len(os.listdir("/proc/self/fd")) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for descriptor in taken[-count:] if count else ():
        os.close(descriptor)
    return taken[: len(taken) - count]


def few_descriptors(say: Say, tier: str, directory: str, name: str, first: bool) -> list[str]:
    """Offload with no descriptor left, with one, with two and so on; what became of it, until it is as asked."""
    allocator.NAME = name
    found: list[str] = []
    if tier == "shared":
        settings: dict[str, Any] = {"share_host_copy": True}
    else:
        settings = {"offload_to_disk_path": directory, "keep": tier == "kept"}
    with torch.no_grad():
        assert_right(seeded(Stack), twin_of(seeded(Stack), CPU), CPU, passes=1)
    if first:
        other = seeded(Stack)
        dop.enable_group_offload(other, CPU, **settings)  # has the memory that the others are to join
    for count in range(30):
        model, twin = seeded(Stack), twin_of(seeded(Stack), CPU)
        taken = leave(count)
        open_before = len(taken)
        try:
            dop.enable_group_offload(model, CPU, **settings)
        except dop.DiskTierError as error:
            assert_plain(model)
            found.append(errno.errorcode[error.errno or 0])
        else:
            found.append(dop.offload_report(model).components[0].tier + decisions(model))
        finally:
            for descriptor in taken:
                os.close(descriptor)
        assert open_before == len(taken)
        assert_right(model, twin, CPU, passes=1)
        assert_state(model, twin)
        dop.disable_group_offload(model, missing_ok=True)
        if found[-1] in ("shared host", "disk"):
            return found
    return found


@pytest.mark.parametrize("first", [False, True], ids=["makes it", "joins"])
def test_sharing_with_few_descriptors(first: bool, tmp_path: Path) -> None:
    *before, last = forked.run(few_descriptors, "shared", "", f"{os.getpid()}-{first}", first).expect()
    assert last == "shared host"
    assert len(before) >= 3
    assert all("host memory is not shared" in found and "shared host" not in found for found in before), before


@pytest.mark.parametrize("tier", ["written", "kept"])
def test_disk_with_few_descriptors(tier: str, tmp_path: Path) -> None:
    *before, last = forked.run(few_descriptors, tier, str(tmp_path), "", False).expect()
    assert last == "disk"
    assert before
    assert set(before) == {"EMFILE"}


# What another process may answer


def served(answer: Callable[[socket.socket], object]) -> tuple[str, threading.Thread]:
    """The name of a socket that answers whoever connects in this way."""
    name = f"{os.getpid()}-{threading.get_ident()}-{id(answer)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    listener.listen(1)

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            answer(client)

    thread = threading.Thread(target=serve)
    thread.start()
    return name, thread


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda client: client.send(READY), "did not arrive"),
        (lambda client: client.send(FILLING), "did not arrive"),
        (lambda client: socket.send_fds(client, [b"?"], [0]), "means nothing"),
    ],
    ids=["no descriptor", "no descriptor, filling", "unknown word"],
)
def test_an_answer_that_is_of_no_use(answer: Any, said: str) -> None:
    before = descriptors()
    name, thread = served(answer)
    with pytest.raises(NotShared, match=said):
        rendezvous.rendezvous(name)
    thread.join()
    assert descriptors() == before


def test_a_descriptor_that_is_sent_in_excess_is_closed() -> None:
    memory = SharedMemory.create(4096)
    before = descriptors()
    name, thread = served(lambda client: socket.send_fds(client, [READY], [memory.descriptor, 0]))
    offer = rendezvous.rendezvous(name)
    thread.join()
    assert isinstance(offer, rendezvous.Offer)
    assert os.fstat(offer.descriptor).st_size == 4096
    assert not os.get_inheritable(offer.descriptor)
    offer.connection.close()
    os.close(offer.descriptor)
    assert descriptors() == before


def test_a_connection_that_is_cut_while_waiting() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    offer = rendezvous.Offer(ours, -1, False)
    ours.close()
    with pytest.raises(NotShared, match="not heard"):
        offer.wait(lambda: 0)
    theirs.close()


def nothing_left(say: Say) -> tuple[bytes, bool]:
    """What is received of a descriptor by a process that may not open one more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    socket.send_fds(theirs, [READY], [0])
    taken = leave(0)
    try:
        state, descriptor = receive(ours, 1)
    finally:
        for one in taken:
            os.close(one)
    return state, descriptor is None


def test_the_system_drops_what_cannot_be_opened() -> None:
    assert forked.run(nothing_left).expect() == (READY, True)
