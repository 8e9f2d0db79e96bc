"""What ranks do. Each function takes the rank, and returns what the test looks at."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.memory.process import give_memory_back, process_memory
from diffusers_offload_plus.offload.stores.shared import rendezvous
from diffusers_offload_plus.offload.stores.shared.memory import SharedMemory
from diffusers_offload_plus.offload.stores.shared.rendezvous import Offer
from tests.offload.stores.disk.setup import assert_right, assert_state, twin_of
from tests.offload.stores.shared.ranks import Rank
from tests.simulated import register, trim
from tests.support.models import Stack, assert_plain, noise, seeded
from tests.zoo.denoisers import flux


class Wide(nn.Module):
    """Weights of 16 MiB a block, filled quickly."""

    WIDTH = 2048

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.utils.skip_init(nn.Linear, self.WIDTH, self.WIDTH) for _ in range(depth)])
        for number, tensor in enumerate(self.state_dict().values()):
            tensor.copy_(torch.linspace(-0.02, 0.02 + number / 1000, tensor.shape[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def offload(model: nn.Module, where: str, **options: Any) -> None:
    if where == "sim":
        register()
    dop.enable_group_offload(model, where, **{"use_stream": where != "cpu", **options})


def memory_of(model: nn.Module) -> set[int]:
    """The inodes of the shared memory that the weights of a model are mapped from; 0 for memory of the process."""
    starts = [(parameter.data_ptr(), parameter.numel()) for parameter in model.parameters()]
    found = dict.fromkeys((address for address, numel in starts if numel), 0)
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = re.match(r"(\w+)-(\w+) \S+ \w+ \S+ (\d+)\s+/memfd:diffusers_offload_plus", line)
        if match:
            first, last = int(match[1], 16), int(match[2], 16)
            found.update({address: int(match[3]) for address in found if first <= address < last})
    return set(found.values())


def traces() -> int:
    """How many mappings, descriptors and sockets of shared memory this process has."""
    count = Path("/proc/self/maps").read_text().count("/memfd:diffusers_offload_plus")
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += "/memfd:diffusers_offload_plus" in os.readlink(f"/proc/self/fd/{descriptor}")
    return count


def decisions(model: nn.Module) -> str:
    return "\n".join(d.reason for d in dop.offload_report(model).components[0].decisions)


def proportional(where: str) -> int:
    """Bytes of this process, what it shares divided by how many share it. Files it has mapped are left out: how many
    share those changes with whatever else runs on the machine."""
    gc.collect()
    if where == "sim":
        trim()
    give_memory_back()
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE)
    assert len(found) == 2
    return sum(map(int, found)) * 1024


def share(rank: Rank, where: str, depth: int) -> dict[str, Any]:
    """Offload a large model, run it, and tell what that took."""
    x = torch.linspace(-1, 1, 2 * Wide.WIDTH).reshape(2, Wide.WIDTH)

    def twice(model: nn.Module) -> bool:
        with torch.no_grad():
            want = model(x)
            offload(model, where)
            return all(torch.equal(model(x.to(where)).cpu(), want) for _ in range(2))

    small = Wide(2)  # what is imported, loaded and reserved at first use is not counted
    twice(small)
    dop.disable_group_offload(small)
    del small
    rank.rendezvous()
    before = proportional(where)
    rank.rendezvous()
    model = Wide(depth)
    nbytes = sum(t.numel() * t.element_size() for t in model.parameters())
    right = twice(model)
    rank.rendezvous()
    taken = proportional(where) - before
    rank.rendezvous()
    report = dop.offload_report(model).components[0]
    return {
        "right": right,
        "nbytes": nbytes,
        "taken": taken,
        "memory": memory_of(model),
        "moved": report.transferred_bytes,
        "report": (report.tier, report.shared_bytes, report.host_bytes, report.private_bytes),
    }


def one_goes(rank: Rank, where: str) -> Any:
    """The rank that made the memory ends at once; another comes after that."""
    model = seeded(Stack)
    twin = twin_of(model, where) if where == "cpu" else None
    if rank.number == 2:
        rank.hear()
    if rank.number:
        rank.hear()
    offload(model, where)
    twin = twin or twin_of(seeded(Stack), where)
    assert_right(model, twin, where)
    rank.say("ready")
    rank.hear()
    assert_right(model, twin, where)
    assert_state(model, twin)
    return memory_of(model)


def killed_while_filling(rank: Rank) -> Any:
    """The first rank stops in the middle of what it writes, with some of its weights moved."""
    model, twin = seeded(Stack), seeded(Stack)
    if rank.number:
        rank.hear()
        wait = Offer.wait

        def waits(*arguments: Any) -> None:
            if not calls:
                rank.say("waiting")
            calls.append(1)
            wait(*arguments)

        calls: list[int] = []

        mock.patch.object(Offer, "wait", waits).start()
    else:
        fill, calls = SharedMemory.fill, []

        def stuck(*arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                rank.say("stuck")
                time.sleep(1000)
            fill(*arguments)

        mock.patch.object(SharedMemory, "fill", stuck).start()
    offload(model, "cpu")
    assert_right(model, twin, "cpu")
    rank.say("shared")
    rank.hear()
    return memory_of(model)


def stuck_while_filling(rank: Rank) -> Any:
    """The first rank stands still; who waits for it does not wait for ever."""
    model, twin = seeded(Stack), seeded(Stack)
    if rank.number:
        rendezvous.PATIENCE = 0.5
        rank.hear()
    else:
        fill = SharedMemory.fill

        def slow(*arguments: Any) -> None:
            if not calls:
                rank.say("stuck")
                rank.hear()
            calls.append(1)
            fill(*arguments)

        calls: list[int] = []
        mock.patch.object(SharedMemory, "fill", slow).start()
    offload(model, "cpu")
    assert_right(model, twin, "cpu")
    rank.say("done")
    return memory_of(model), decisions(model)


def alone(rank: Rank, where: str) -> Any:
    """Only the first rank offloads anything."""
    if rank.number:
        return None
    model, twin = seeded(Stack), twin_of(seeded(Stack), "cpu")
    offload(model, where)
    assert_right(model, twin if where == "cpu" else twin_of(twin, where), where)
    return memory_of(model)


def different(rank: Rank, where: str) -> Any:
    """Ranks with odd numbers have one other weight."""
    model = seeded(Stack)
    if rank.number % 2:
        with torch.no_grad():
            model.blocks[3].up.weight[5, 7] += 1
    plain = seeded(Stack)
    plain.load_state_dict(model.state_dict())
    offload(model, where)
    twin = twin_of(plain, where)
    rank.rendezvous()
    assert_right(model, twin, where)
    assert_state(model, twin)
    rank.rendezvous()
    return memory_of(model)


def written(rank: Rank, where: str, how: str) -> Any:
    """One rank changes weights of its own; all others see what they saw, and it sees what it wrote."""
    model, plain = seeded(Stack), seeded(Stack)
    offload(model, where)
    rank.rendezvous()

    def change(which: nn.Module) -> None:
        with torch.no_grad():
            weight = which.get_parameter("blocks.2.up.weight")
            if how == "data":
                weight.data[3] *= 2
            else:
                weight[3] *= 2

    if rank.number == 1:
        change(plain)
        with dop.onloaded(model) if how == "onloaded" else contextlib.nullcontext():
            change(model)
    rank.rendezvous()
    twin = twin_of(plain, where)
    assert_right(model, twin, where)
    assert_state(model, twin)
    rank.rendezvous()
    return dop.offload_report(model).components[0].private_bytes


def trained(rank: Rank, where: str) -> Any:
    """Each rank takes a step of training on data of its own."""
    model, plain = seeded(Stack), seeded(Stack)
    offload(model, where)
    twin = twin_of(plain, where)
    for one in (model, twin):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        one(noise(where, seed=rank.number)).square().sum().backward()
        optimizer.step()
    rank.rendezvous()
    assert_right(model, twin, where)
    assert_state(model, twin)
    return float(model.get_parameter("outlet.weight").detach().sum())


def replaced(rank: Rank, where: str) -> Any:
    """All ranks give a block new weights, one of them other ones."""
    model, plain = seeded(Stack), seeded(Stack)
    offload(model, where)
    fresh = torch.full((64, 32), 0.01 if rank.number < 2 else 0.02)
    for one in (model, plain):
        one.get_submodule("blocks.1.up").weight = nn.Parameter(fresh.clone())
    twin = twin_of(plain, where)
    assert_right(model, twin, where)
    assert_state(model, twin)
    rank.rendezvous()
    rest = nn.ModuleList(block for number, block in enumerate(model.blocks) if number != 1)
    return memory_of(rest), memory_of(model.blocks[1])


def disabled(rank: Rank, where: str) -> Any:
    """The first rank takes its weights back, later the others."""
    model = seeded(Stack)
    offload(model, where)
    twin = twin_of(seeded(Stack), where)
    rank.rendezvous()
    during = memory_of(model)
    if rank.number == 0:
        dop.disable_group_offload(model)
        assert_plain(model)
        assert_state(model, twin)
        during = memory_of(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    rank.rendezvous()
    if rank.number:
        assert_right(model, twin, where)
        dop.disable_group_offload(model)
        assert_state(model, twin)
    gc.collect()
    deadline = time.monotonic() + 20
    while traces() and time.monotonic() < deadline:
        time.sleep(0.01)
    rank.rendezvous()
    return during, traces()


def limited(rank: Rank, where: str, nbytes: int) -> Any:
    """The first rank may not make files larger than so many bytes."""
    if rank.number == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
    else:
        rank.rendezvous()  # otherwise it might be the one that makes the memory, which the first could then use
    model = seeded(Stack)
    offload(model, where)
    if rank.number == 0:
        rank.rendezvous()
    twin = twin_of(seeded(Stack), where)
    assert_right(model, twin, where)
    assert_state(model, twin)
    rank.rendezvous()
    return memory_of(model), decisions(model)


def full(rank: Rank, where: str, groups: int) -> Any:
    """Memory runs out on the first rank after so many groups; it stays full for all."""
    reserve, calls = os.posix_fallocate, []

    def failing(*arguments: int) -> None:
        calls.append(1)
        if len(calls) > groups:
            raise OSError(28, os.strerror(28))
        reserve(*arguments)

    os.posix_fallocate = failing
    model = seeded(Stack)
    offload(model, where)
    twin = twin_of(seeded(Stack), where)
    rank.rendezvous()
    assert_right(model, twin, where)
    assert_state(model, twin)
    rank.rendezvous()
    return len(memory_of(model)), decisions(model)


def peak(rank: Rank, depth: int) -> Any:
    """The most memory there was at any step of the set-up, over what the model takes."""
    seen: list[int] = []
    memories: list[SharedMemory] = []

    def counted(name: str) -> None:
        original = getattr(SharedMemory, name)

        def call(memory: SharedMemory, *arguments: Any) -> Any:
            memories[:] = [memory]
            result = original(memory, *arguments)
            own = (process_memory().anonymous or 0) - before
            seen.append(own + (memory.reserved() if rank.number == 0 else 0))
            return result

        setattr(SharedMemory, name, call)

    counted("reserve")
    counted("fill")
    gc.collect()
    give_memory_back()
    before = process_memory().anonymous or 0
    model = Wide(depth)
    nbytes = sum(t.numel() * t.element_size() for t in model.parameters())
    offload(model, "cpu")
    gc.collect()
    after = (process_memory().anonymous or 0) - before
    rank.rendezvous()
    return nbytes, max(seen, default=0), after


@contextlib.contextmanager
def collectives_of_the_device() -> Iterator[None]:
    """gloo knows no simulated device: what is sent passes through host memory."""
    functional = torch.ops._c10d_functional
    library = torch.library.Library("_c10d_functional", "IMPL")

    def gather(x: torch.Tensor, size: int, group: str) -> torch.Tensor:
        return functional.wait_tensor(functional.all_gather_into_tensor(x.cpu(), size, group)).to(x.device)

    def exchange(x: torch.Tensor, ours: list[int], theirs: list[int], group: str) -> torch.Tensor:
        return functional.wait_tensor(functional.all_to_all_single(x.cpu(), ours, theirs, group)).to(x.device)

    library.impl("all_gather_into_tensor", gather, "PrivateUse1")
    library.impl("all_to_all_single", exchange, "PrivateUse1")
    library.impl("wait_tensor", lambda x: x, "PrivateUse1")
    yield
    library._destroy()


def context_parallel(rank: Rank, where: str, order: str) -> Any:
    """Half of the tokens on each rank; enabled before offloading, or after it."""
    register()  # diffusers asks for an accelerator
    mesh = dist.init_device_mesh("cpu", (1, rank.world), mesh_dim_names=("ring", "ulysses"))

    def parallel(model: nn.Module) -> None:
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=rank.world, mesh=mesh))

    def call(model: nn.Module) -> torch.Tensor:
        grid = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)).to(where)
        with torch.no_grad():
            output = model(
                hidden_states=noise(where, 2, 16, 4),
                encoder_hidden_states=noise(where, 2, 8, 32),
                pooled_projections=noise(where, 2, 32),
                timestep=torch.tensor([0.2, 0.9], device=where),
                img_ids=grid,
                txt_ids=torch.zeros(8, 3, device=where),
                return_dict=False,
            )
        return output[0].cpu()

    with collectives_of_the_device():
        whole, plain, model = flux().to(where), flux().to(where), flux()
        want = call(whole)
        parallel(plain)
        if order == "before":
            parallel(model)
        offload(model, where)
        if order == "after":
            parallel(model)
        rank.rendezvous()
        outputs = [call(model) for _ in range(3)]
        expected = call(plain)
        assert all(torch.equal(output, expected) for output in outputs)
        torch.testing.assert_close(expected, want)
        memory = memory_of(model)
        dop.disable_group_offload(model)
        assert torch.equal(call(model.to(where)), expected)
        assert_state(model, plain)
        rank.rendezvous()
    return memory
