"""Ranks of one machine: processes forked from one that has everything imported, joined by gloo."""

from __future__ import annotations

import os
import re
import socket
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffusers_offload_plus.offload.stores.shared import allocator
from tests.offload.stores.disk.forked import CONTEXT, PATIENCE, Child


class Rank:
    """What a program knows: its number, and the test at the other end of a line."""

    def __init__(self, number: int, world: int, say: Callable[[Any], None], line: Connection) -> None:
        self.number = number
        self.world = world
        self.say = say
        self._line = line

    def hear(self) -> Any:
        """What the test tells this rank next."""
        assert self._line.poll(PATIENCE), "the test says nothing"
        return self._line.recv()

    def rendezvous(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


Program = Callable[..., Any]


class Ranks:
    """`world` processes that run `program(rank, *arguments)`."""

    def __init__(self, world: int, directory: Path, program: Program, *arguments: Any) -> None:
        group = (_tag(directory), str(directory / "store"), world)
        self._lines: list[Connection] = []
        self.children: list[Child] = []
        for number in range(world):
            ours, theirs = CONTEXT.Pipe()
            self._lines.append(ours)
            self.children.append(Child(_run, number, group, theirs, program, arguments))

    def tell(self, number: int, what: Any) -> None:
        self._lines[number].send(what)

    def hear(self, number: int) -> Any:
        return self.children[number].hear()

    def all_say(self, what: Any) -> None:
        """Each says this next."""
        assert [child.hear() for child in self.children] == [what] * len(self.children)

    def kill(self, number: int) -> None:
        assert self.children[number].kill()

    def values(self) -> list[Any]:
        """What the programs return."""
        return [child.outcome().expect() for child in self.children]


def run(world: int, directory: Path, program: Program, *arguments: Any) -> list[Any]:
    """What each of `world` ranks returns."""
    return Ranks(world, directory, program, *arguments).values()


def names(directory: Path) -> list[str]:
    """What ranks with this directory listen to."""
    return re.findall(f"@({re.escape(_tag(directory))}.*)", Path("/proc/net/unix").read_text())


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it holds; fail if that takes too long."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def _tag(directory: Path) -> str:
    return f"{os.getpid()}-{zlib.crc32(str(directory).encode())}."


def _run(
    say: Callable[[Any], None],
    number: int,
    group: tuple[str, str, int],
    line: Connection,
    program: Program,
    arguments: tuple[Any, ...],
) -> Any:
    allocator.NAME, store, world = group  # not to meet what other tests offload at the same time
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    dist.barrier()  # or one that is done at once leaves while the others still connect to it
    return program(Rank(number, world, say, line), *arguments)


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
