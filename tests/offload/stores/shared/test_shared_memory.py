"""Each piece alone: memory that is reserved and sealed, how processes find one another, what the runtime reads."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import resource
import socket
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.api.checks import policy_for
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.memory import process as memory
from diffusers_offload_plus.offload.model import inventory
from diffusers_offload_plus.offload.stores.shared import allocator, rendezvous
from diffusers_offload_plus.offload.stores.shared import memory as shared_memory
from diffusers_offload_plus.offload.stores.shared.allocator import SharedAllocator, SharedSlab
from diffusers_offload_plus.offload.stores.shared.memory import NotShared, SharedMemory
from diffusers_offload_plus.offload.stores.shared.server import Member
from diffusers_offload_plus.offload.transfer import copy_engine
from tests.offload.stores.disk.forked import run
from tests.offload.stores.disk.setup import assert_right, assert_state, twin_of
from tests.offload.stores.shared.programs import decisions, memory_of
from tests.offload.stores.shared.ranks import eventually
from tests.support.models import Stack, seeded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Other tests, in other processes, may offload the same weights.
    monkeypatch.setattr(allocator, "NAME", f"{os.getpid()}-{tmp_path.name[-30:]}")


def offload(model: Any, where: torch.device, **options: Any) -> None:
    dop.enable_group_offload(model, where, **{"share_host_copy": True, "use_stream": where.type != "cpu", **options})


def slabs(model: Any) -> list[SharedSlab]:
    attachment = attachment_of(model)
    assert attachment is not None
    return [group.storage for group in attachment.engine.groups if isinstance(group.storage, SharedSlab)]


# Who shares


def test_models_of_one_process_share(device: torch.device) -> None:
    models = [seeded(Stack, seed) for seed in (0, 1, 0)]
    twins = [twin_of(model, device) for model in models]
    for model in models:
        offload(model, device)
    memories = [memory_of(model) for model in models]
    assert memories[0] == memories[2] != memories[1]
    assert 0 not in memories[0] | memories[1]
    with torch.no_grad():
        models[2].blocks[0].up.weight.zero_()
        twins[2].blocks[0].up.weight.zero_()
    for model, twin in zip(models, twins, strict=True):
        assert_right(model, twin, device)
        assert_state(model, twin)


@pytest.mark.parametrize("other", [{"offload_type": "leaf_level"}, {"low_cpu_mem_usage": True}])
def test_other_settings_are_other_memory(other: dict[str, Any], device: torch.device) -> None:
    """Groups lie elsewhere, or the memory is not to be pinned."""
    one, two = seeded(Stack), seeded(Stack)
    offload(one, device)
    offload(two, device, **other)
    assert not memory_of(one) & memory_of(two)
    assert_right(two, twin_of(seeded(Stack), device), device)


def test_same_bytes_of_another_type_are_other_weights() -> None:
    one = torch.nn.Linear(8, 8)
    two = torch.nn.Linear(8, 8)
    with torch.no_grad():
        two.load_state_dict(one.state_dict())
    two.weight = torch.nn.Parameter(two.weight.detach().view(torch.int32), requires_grad=False)
    three = torch.nn.Linear(8, 8)
    three.load_state_dict(one.state_dict())
    three.weight = torch.nn.Parameter(three.weight.detach().t())
    for model in (one, two, three):
        offload(model, CPU)
    assert len(memory_of(one) | memory_of(two) | memory_of(three)) == 3


def test_a_model_on_the_device_is_shared_too(device: torch.device) -> None:
    here, there = seeded(Stack), seeded(Stack).to(device)
    offload(here, device)
    offload(there, device)
    assert memory_of(here) == memory_of(there)
    assert_right(there, twin_of(seeded(Stack), device), device)


def test_replanned_and_disabled(device: torch.device) -> None:
    model, twin = seeded(Stack), twin_of(seeded(Stack), device)
    offload(model, device)
    first = memory_of(model)
    offload(model, device)
    assert memory_of(model) == first
    offload(model, device, offload_type="leaf_level")
    assert memory_of(model) != first
    assert_right(model, twin, device)
    offload(model, device, share_host_copy=False)
    assert memory_of(model) == {0}
    assert dop.offload_report(model).components[0].shared_bytes == 0
    offload(model, device)
    assert 0 not in memory_of(model)
    dop.disable_group_offload(model)
    assert memory_of(model) == {0}
    assert_state(model, twin)


# What is asked for


@pytest.mark.parametrize(
    ("initialised", "world", "local", "expected"),
    [
        (False, 4, None, False),
        (True, 4, None, True),
        (True, 4, "2", True),
        (True, 4, "1", False),
        (True, 1, None, False),
    ],
)
def test_when_ranks_share_unasked(
    initialised: bool, world: int, local: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: initialised)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert policy_for(onload_device="cpu").share_host_copy is expected
    assert not policy_for(onload_device="cpu", share_host_copy=False).share_host_copy


def test_what_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, Any] = {"share_host_copy": "yes"}
    with pytest.raises(dop.InvalidPolicyError, match=r"`share_host_copy` must be True, False or None, got 'yes'"):
        policy_for(onload_device="cpu", **wrong)
    with pytest.raises(dop.InvalidPolicyError, match="`offload_to_disk_path` puts them on disk"):
        policy_for(onload_device="cpu", share_host_copy=True, offload_to_disk_path=str(tmp_path))
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(dop.InvalidPolicyError, match="needs Linux with `memfd_create`"):
        policy_for(onload_device="cpu", share_host_copy=True)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert not policy_for(onload_device="cpu").share_host_copy


# Memory


def test_nobody_can_change_or_cut_it() -> None:
    made = SharedMemory.create(5 * mmap.PAGESIZE)
    made.reserve(0, made.nbytes)
    values = torch.arange(made.nbytes, dtype=torch.int64).to(torch.uint8)
    made.fill(0, values.data_ptr(), made.nbytes)
    taken = SharedMemory.receive(os.dup(made.descriptor), made.nbytes)
    made.forbid_writing()
    assert torch.equal(taken.view.bytes(0, made.nbytes), values)
    for change in (
        lambda: os.ftruncate(taken.descriptor, mmap.PAGESIZE),
        lambda: os.ftruncate(taken.descriptor, 9 * mmap.PAGESIZE),
        lambda: os.pwrite(taken.descriptor, b"x", 0),
        lambda: mmap.mmap(taken.descriptor, made.nbytes),
    ):
        with pytest.raises(OSError, match=r"permitted|denied") as caught:
            change()
        assert caught.value.errno in (errno.EPERM, errno.EACCES)
    taken.view.bytes(7, 1).fill_(99)
    assert taken.view.bytes(7, 1).item() == 99
    assert made.view.bytes(7, 1).item() == 7
    assert taken.view.is_private(7, 1)
    assert not made.view.is_private(0, made.nbytes)


def test_what_is_not_sealed_is_not_used() -> None:
    descriptor = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    with pytest.raises(NotShared, match="not 4096 sealed bytes"):
        SharedMemory.receive(descriptor, 4096)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    other = SharedMemory.create(4096)
    with pytest.raises(NotShared, match="not 8192 sealed bytes"):
        SharedMemory.receive(os.dup(other.descriptor), 8192)


def test_too_little_memory_is_known_before(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control group would kill the process."""
    monkeypatch.setattr(shared_memory, "available_memory", lambda: shared_memory.MARGIN + 1000)
    model = seeded(Stack)
    offload(model, device)
    assert memory_of(model) == {0}
    assert f"only {shared_memory.MARGIN + 1000} free" in decisions(model)
    assert dop.offload_report(model).components[0].tier in ("host", "pinned host")
    assert_right(model, twin_of(seeded(Stack), device), device)


def test_room_in_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for level, limit in ((tmp_path / "outer", "900000"), (inner, "max")):
        (level / "memory.max").write_text(limit)
        (level / "memory.current").write_text("500000")
        (level / "memory.stat").write_text("anon 1\ninactive_file 70000\n")
    monkeypatch.setattr(memory, "_CGROUP_ROOTS", {2: tmp_path})
    monkeypatch.setattr(memory, "_cgroups", lambda: [(2, inner)])
    assert memory.available_memory() == 470000
    (tmp_path / "outer" / "memory.max").write_text("400000")
    assert memory.available_memory() == 0
    (tmp_path / "outer" / "memory.max").write_text("max")
    found = memory.available_memory()
    assert found is not None
    assert found > 1 << 20


# Pinning


class Runtime:
    """A device runtime that locks memory, as far as the system lets it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert flags == 1
        if self._libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) != 0:
            return 2
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """Has memory registered on the simulated device too."""
    found = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)

    def register(link: Any, shared: SharedMemory) -> torch.Tensor:
        return original(types.SimpleNamespace(device=torch.device("cuda")), shared)

    original: Any = copy_engine.CopyEngine.register_host
    monkeypatch.setattr(copy_engine.CopyEngine, "register_host", register)
    yield found
    gc.collect()
    assert found.registered == {}


def test_copies_start_from_what_the_runtime_knows(device: torch.device, runtime: Runtime) -> None:
    model, twin = seeded(Stack), twin_of(seeded(Stack), device)
    offload(model, device)
    assert dop.offload_report(model).components[0].tier == "pinned shared host"
    ((start, size),) = runtime.registered.items()
    stored = slabs(model)
    assert all(start <= slab.in_memory.data_ptr() < start + size for slab in stored)
    assert all(torch.equal(slab.in_memory, slab.bytes) for slab in stored)
    assert_right(model, twin, device)
    assert all(not slab.private_bytes for slab in stored)
    with torch.no_grad():
        for one in (model, twin):
            one.blocks[2].up.weight.data[3] *= 2
    private = [slab for slab in stored if not start <= slab.in_memory.data_ptr() < start + size]
    assert 0 < len(private) < len(stored)
    assert_right(model, twin, device)
    assert_state(model, twin)
    del stored, private
    dop.disable_group_offload(model)
    assert_state(model, twin)


def test_what_was_not_changed_is_not_written(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large buffers come back after each pass."""
    monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", 1 << 20)

    class Table(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[1].register_buffer("table", torch.randn(1 << 19))

    model = seeded(Table)
    offload(model, device)
    assert_right(model, twin_of(seeded(Table), device), device)
    report = dop.offload_report(model).components[0]
    assert report.written_back_bytes >= 1 << 21
    assert report.private_bytes == 0
    with dop.onloaded(model), torch.no_grad():
        model.blocks[1].table[5] += 1
    assert dop.offload_report(model).components[0].private_bytes >= 1 << 21


def lock_limit(say: Any, limit: int) -> Any:
    """What becomes of a model whose memory is to be pinned, under a limit that holds for this user."""
    runtime = Runtime()
    torch.cuda.cudart = lambda: runtime
    original: Any = copy_engine.CopyEngine.register_host
    stub = types.SimpleNamespace(device=torch.device("cuda"))
    mock.patch.object(copy_engine.CopyEngine, "register_host", lambda link, shared: original(stub, shared)).start()
    from tests.simulated import register

    register()
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    if os.geteuid() == 0:
        os.setuid(65534)  # who may lock as much as there is has no limit
    model = seeded(Stack)
    offload(model, torch.device("sim"))
    assert_right(model, twin_of(seeded(Stack), "sim"), torch.device("sim"))
    return dop.offload_report(model).components[0].tier, decisions(model), memory.lockable_bytes()


def test_the_limit_on_locked_memory() -> None:
    tier, why, found = run(lock_limit, 16384).expect()
    assert tier == "shared host"
    assert found == 16384
    assert "16384 bytes may be locked, see `ulimit -l`" in why
    tier, why, found = run(lock_limit, 1 << 22).expect()
    assert tier == "pinned shared host"
    assert "pinned" not in why


def test_a_device_without_pinning_says_so(device: torch.device) -> None:
    model = seeded(Stack)
    offload(model, device)
    expected = "" if device.type == "cuda" else f"'{device.type}' devices have no way to pin memory"
    assert expected in decisions(model)
    offload(model, device, low_cpu_mem_usage=True)
    assert "pin" not in decisions(model)


# Rendezvous


def filled(value: int) -> SharedMemory:
    made, values = SharedMemory.create(4096), torch.full((4096,), value, dtype=torch.uint8)
    made.reserve(0, 4096)
    made.fill(0, values.data_ptr(), 4096)
    return made


def offered(name: str, value: int, *, ready: bool = True) -> Member:
    """Memory full of `value` that others can have under `name`."""
    listener, made = rendezvous.rendezvous(name), filled(value)
    assert isinstance(listener, socket.socket)
    member = Member(name, os.dup(made.descriptor), listener, serves=True)
    if ready:
        member.announce()
    return member


def received(name: str) -> tuple[rendezvous.Offer, SharedMemory]:
    found = rendezvous.rendezvous(name)
    assert isinstance(found, rendezvous.Offer)
    memory = SharedMemory.receive(found.descriptor, 4096)
    found.wait(memory.reserved)
    return found, memory


def test_the_name_lives_on_while_anybody_has_the_memory() -> None:
    name = f"succession-{os.getpid()}"
    members = [offered(name, 7)]
    for _ in range(3):
        found, memory = received(name)
        assert memory.view.bytes(0, 1).item() == 7
        members.append(Member(name, os.dup(memory.descriptor), found.connection, serves=False))
    while len(members) > 1:
        members.pop(0).release()
        eventually(lambda: isinstance(attempt(name), rendezvous.Offer))
        found, memory = received(name)
        assert memory.view.bytes(0, 1).item() == 7
        found.connection.close()
    members.pop().release()
    eventually(lambda: isinstance(attempt(name), socket.socket))


def attempt(name: str) -> Any:
    found = rendezvous.rendezvous(name)
    if isinstance(found, rendezvous.Offer):
        os.close(found.descriptor)
    (found.connection if isinstance(found, rendezvous.Offer) else found).close()
    return found


def test_a_process_that_has_gone_costs_the_server_no_descriptor() -> None:
    """A server lives for days, while workers come and go."""
    name = f"gone-{os.getpid()}"
    member = offered(name, 7)
    for _ in range(5):
        received(name)[0].connection.close()
    found, _ = received(name)
    eventually(lambda: len(member._clients) == 1)
    found.connection.close()
    member.release()


def test_memory_given_up_before_it_was_full() -> None:
    name = f"given-up-{os.getpid()}"
    member = offered(name, 7, ready=False)
    found = rendezvous.rendezvous(name)
    assert isinstance(found, rendezvous.Offer)
    member.release()
    with pytest.raises(ConnectionError):
        found.wait(lambda: 0)
    found.connection.close()
    os.close(found.descriptor)
    assert isinstance(attempt(name), socket.socket)


def test_other_users_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"foreign-{os.getpid()}"
    member = offered(name, 7)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(NotShared, match="another user"):
            rendezvous.rendezvous(name)
    member.release()


def test_a_forked_child_answers_for_nothing() -> None:
    """Else the name would be taken, by a process that has nobody to answer, for as long as the child lives."""
    name = f"forked-{os.getpid()}"
    member = offered(name, 7)
    eventually(lambda: isinstance(attempt(name), rendezvous.Offer))
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        member.release()
        eventually(lambda: isinstance(attempt(name), socket.socket))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_bytes_are_compared_whatever_the_name_says(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest finds memory; it proves nothing."""
    monkeypatch.setattr(SharedAllocator, "_content_name", lambda self: "same")
    monkeypatch.setattr(allocator, "NAME", "same")
    one, two = seeded(Stack, 0), seeded(Stack, 0)
    with torch.no_grad():
        two.blocks[3].up.weight[1, 1] += 1
    twins = [twin_of(model, device) for model in (one, two)]
    offload(one, device)
    offload(two, device)
    assert memory_of(two) == memory_of(one) | {0}
    assert "another process offers are not the same" in decisions(two)
    for model, twin in zip((one, two), twins, strict=True):
        assert_right(model, twin, device)
        assert_state(model, twin)


def test_a_socket_that_is_refused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> socket.socket:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(rendezvous, "listen", refused)
    model = seeded(Stack)
    offload(model, device)
    assert memory_of(model) == {0}
    assert "processes cannot meet through a Unix socket: Permission denied" in decisions(model)
    assert_right(model, twin_of(seeded(Stack), device), device)
