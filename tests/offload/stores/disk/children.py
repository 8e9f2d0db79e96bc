"""What forked processes do. Each function takes `say`, which sends something to the test."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.memory import process as memory
from diffusers_offload_plus.offload.stores.mapped_file import MappedFile
from tests.offload.stores.disk.setup import assert_right, assert_state, disk_allocator, offload, on_disk, twin_of
from tests.support.models import Stack, noise, seeded

torch.set_num_threads(1)
Say = Callable[[Any], None]

CPU = torch.device("cpu")


def keep(say: Say, directory: str, seed: int) -> float:
    """Set up a model whose files are kept; the seconds that took."""
    model = seeded(Stack, seed)
    say("ready")
    begin = time.perf_counter()
    offload(model, CPU, directory, keep=True)
    return time.perf_counter() - begin


def keep_until(say: Say, directory: str, stop: int) -> bool:
    """Set up a model; from the step `stop` on the process is as good as dead. Whether it came to the end."""
    steps = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > stop:
                raise SystemExit
            return original(*arguments, **named)

        return call

    for name in ("pwrite", "replace", "fsync", "fchmod", "posix_fallocate", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        offload(seeded(lambda: Stack(1)), CPU, directory, keep=True)
    except SystemExit:
        return False
    return True


def keep_when_told(say: Say, directory: str, seed: int, at: float) -> int:
    """Set up a model at a given moment, as others do; the bytes written."""
    model = seeded(Stack, seed)
    twin = twin_of(model, CPU)
    time.sleep(max(0.0, at - time.time()))
    offload(model, CPU, directory, keep=True)
    assert_right(model, twin, CPU)
    assert_state(model, twin)
    written = disk_allocator(model).written
    dop.disable_group_offload(model)
    assert_state(model, twin)
    return written


def truncated_before_use(say: Say, path: str, kind: str) -> str:
    """Weights mapped from a file of which nothing is left when they are used."""
    from tests.offload.stores.disk.setup import save_checkpoint

    file = save_checkpoint(seeded(Stack), Path(path) / "model.safetensors", start=0)
    model = seeded(Stack)
    offload(model, CPU, Path(path) / "store", checkpoint=str(file))
    assert disk_allocator(model).written == 0
    with torch.no_grad():
        model(noise("cpu"))
    os.truncate(file, 4096)
    try:
        if kind == "forward":
            model(noise("cpu"))
        elif kind == "disable":
            dop.disable_group_offload(model)
        elif kind == "again":
            offload(model, CPU, Path(path) / "other")
        elif kind == "stored anew":
            model.blocks[0].norm.weight.data = torch.ones(32)
            model(noise("cpu"))
        elif kind == "user":
            return str(float(model.outlet.weight.sum()))
    except dop.FileChangedError as error:
        return str(error)
    return "no error"


def bytes_that_cannot_be_read(say: Say, path: str, how: str) -> str:
    """The mapping has pages that the file no longer has, and the file's looks are as before."""
    file = Path(path) / "file"
    file.write_bytes(bytes(1 << 20))
    mapped = MappedFile(str(file))
    mapped.bytes(0, 1)[0] = 1
    os.truncate(file, 4096)
    target = torch.empty(1 << 19, dtype=torch.uint8)
    try:
        if how == "populate":
            mapped.populate(1 << 19, 1 << 19)
        elif how == "read":
            mapped.read_into(target, 1 << 19)
        elif how == "closed":
            mapped.close()
            mapped.read_into(target, 1 << 19)
        elif how == "compare":
            mapped.equals(target.data_ptr(), 1 << 19, 1 << 19)
    except dop.DiskTierError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def few_descriptors(say: Say, directory: str, limit: int) -> int:
    """Many groups, each stored anew after a cast, under a limit on open files; how many are open at the end."""
    model = seeded(lambda: Stack(60))
    twin = twin_of(model, CPU)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    offload(model, CPU, directory, offload_type="leaf_level")
    assert_right(model, twin, CPU, passes=1)
    model.to(torch.bfloat16)
    twin.to(torch.bfloat16)
    x = noise("cpu").bfloat16()
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(x), twin(x))
    assert len(on_disk(model)) > limit
    count = len(os.listdir("/proc/self/fd"))
    dop.disable_group_offload(model)
    assert_state(model, twin)
    return count


def many_kept_files(say: Say, directory: str, limit: int) -> None:
    """More files in the store than a process may open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    for seed in range(limit):
        model = seeded(lambda: Stack(1), seed)
        offload(model, CPU, directory, keep=True)
        dop.disable_group_offload(model)
    model = seeded(lambda: Stack(1), limit // 2)
    offload(model, CPU, directory, keep=True)
    assert disk_allocator(model).written == 0


def largest_file(say: Say, directory: str, limit: int) -> str:
    """A limit on the size of files, as a quota is."""
    model = seeded(Stack)
    twin = twin_of(model, CPU)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        offload(model, CPU, directory)
    except dop.DiskTierError as error:
        assert_right(model, twin, CPU)
        assert_state(model, twin)
        return str(error)
    return "no error"


def as_nobody(say: Say, directory: str) -> str:
    """A user who may not write the directory."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    model = seeded(Stack)
    twin = twin_of(model, CPU)
    try:
        offload(model, CPU, directory)
    except dop.InvalidPolicyError as error:
        assert_right(model, twin, CPU)
        return str(error)
    return "no error"


def anonymous_memory(say: Say, directory: str, width: int, depth: int, passes: int) -> dict[str, int]:
    """Anonymous memory before and after set-up, and the most of it during passes."""
    layers = [torch.nn.Linear(width, width) for _ in range(depth)]
    model = torch.nn.Sequential(*layers).requires_grad_(False)
    for layer in layers:
        layer.weight.uniform_(-0.01, 0.01)
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    before = memory.process_memory().anonymous or 0
    offload(model, CPU, directory, offload_type="leaf_level")
    after = memory.process_memory().anonymous or 0
    x, peak = torch.ones(1, width), 0
    with torch.no_grad():
        for _ in range(passes):
            x = model(x).clamp(-1, 1)
            peak = max(peak, memory.process_memory().anonymous or 0)
    return {"model": nbytes, "before": before, "after": after, "peak": peak}


def forked_after_set_up(say: Say, directory: str) -> int:
    """A process forked from one with an offloaded model, in the middle of its prefetches."""
    model = seeded(Stack)
    twin = twin_of(model, CPU)
    offload(model, CPU, directory)
    assert_right(model, twin, CPU)
    process = os.fork()
    if process == 0:
        signal.alarm(30)
        try:
            assert_right(model, twin, CPU)
            dop.disable_group_offload(model)
            assert_state(model, twin)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert_right(model, twin, CPU)
    return os.waitstatus_to_exitcode(status)


def exit_without_disabling(say: Say, directory: str) -> None:
    """Set up and end, normally."""
    model = seeded(Stack)
    offload(model, CPU, directory)
    with torch.no_grad():
        model(noise("cpu"))


def random_edits(say: Say, directory: str, seed: int) -> None:
    """Weights written through the mapping at random stay written, whatever is advised about their pages."""
    draw = random.Random(seed)
    path = Path(directory) / "file"
    path.write_bytes(bytes(1 << 20))
    mapped = MappedFile(str(path))
    whole = mapped.bytes(0, 1 << 20)
    want = torch.zeros(1 << 20, dtype=torch.uint8)
    for _ in range(200):
        start = draw.randrange(1 << 20)
        stop = min(1 << 20, start + draw.randrange(1, 9000))
        if draw.random() < 0.5:
            whole[start:stop] = want[start:stop] = draw.randrange(256)
        else:
            draw.choice([mapped.release, mapped.read_ahead, mapped.populate])(start, stop - start)
    assert torch.equal(whole, want)
    assert path.read_bytes() == bytes(1 << 20)
