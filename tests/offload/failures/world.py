"""A pipeline of small models on which an operation is tried with every fault, and how it was before."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import Attachment, attachment_of
from diffusers_offload_plus.offload.stores.shared import server
from tests.offload.stores.shared.ranks import eventually
from tests.support.faults import failing
from tests.support.models import Stack, assert_plain, assert_same, attributes, held, noise, seeded
from tests.support.policies import DIRECTORY, settings

__all__ = ["Part", "World", "try_every_fault"]


BLOCKS: dict[str, dict[str, Any]] = {
    "shared": {"use_stream": True, "share_host_copy": True},
    "lean": {"use_stream": True, "low_cpu_mem_usage": True},
    "disk-stream": {"use_stream": True, "offload_to_disk_path": DIRECTORY},
    "disk-in-pieces": {"use_stream": True, "offload_to_disk_path": DIRECTORY, "host_budget": 8_000},
}
"""Policies beside those of the other tests, with few groups and so few operations that can fail."""


class Part(Stack):
    """Two blocks, a buffer, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__(2)
        self.register_buffer("scale", torch.full((1,), 0.5))
        self.outlet.weight = self.inlet.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale


def place(folder: Path, policy: str, **more: Any) -> dict[str, Any]:
    """The arguments of a policy with a disk that say where weights go."""
    return {"offload_to_disk_path": str(folder / "store"), **more} if policy.startswith("disk") else {}


class World:
    """Three components, of which one may be left out, and plain copies of them."""

    def __init__(self, device: torch.device, parts: dict[str, nn.Module] | None = None) -> None:
        self.device = device
        names = ("encoder", "denoiser", "decoder")
        self.parts = parts or {name: seeded(Part, seed) for seed, name in enumerate(names)}
        self.plain = {name: copy.deepcopy(part) for name, part in self.parts.items()}
        self.pipe = types.SimpleNamespace(components=self.parts)

    def enable(self, policy: str, **more: Any) -> None:
        """Offload them."""
        chosen = BLOCKS.get(policy) or settings(policy, self.pipe, self.device)
        dop.enable_group_offload(self.pipe, self.device, **{**chosen, **more})

    @classmethod
    def that_ran(cls, device: torch.device, policy: str, folder: Path) -> World:
        """One that is offloaded, after a pass of each model."""
        world = cls(device)
        world.enable(policy, **place(folder, policy))
        world.assert_computes(1)
        return world

    def is_offloaded(self, *names: str) -> bool:
        """Whether these are offloaded and no others."""
        return {name for name, part in self.parts.items() if attachment_of(part) is not None} == set(names)

    def assert_values(self) -> None:
        """Every weight is what it was, as anybody may read it."""
        for name, part in self.parts.items():
            theirs = held(self.plain[name])
            for key, tensor in held(part).items():
                assert torch.equal(tensor.detach().cpu(), theirs[key]), f"{name}.{key}"

    def assert_computes(self, passes: int = 2) -> None:
        """Every model computes what it did, where it is."""
        with torch.no_grad():
            for name, part in self.parts.items():
                offloaded = attachment_of(part) is not None
                where = self.device if offloaded else next(part.parameters()).device
                twin = copy.deepcopy(self.plain[name]).to(where)
                for _ in range(passes):
                    assert_same(part(noise(where)), twin(noise(where)), name)

    def close(self) -> None:
        """Offloading ends, and leaves nothing."""
        dop.disable_group_offload(self.pipe, missing_ok=True)
        self.assert_values()
        for part in self.parts.values():
            assert_plain(part)


class Resources:
    """What the process holds."""

    def __init__(self, world: World) -> None:
        from tests import simulated

        gc.collect()
        # Whoever served shared memory that was released is about to close what it has.
        eventually(lambda: not any(m._released and m._descriptor >= 0 for m in server._MEMBERS))
        attachments = [found for part in world.parts.values() if (found := attachment_of(part)) is not None]
        for group in [group for attachment in attachments for group in attachment.engine.groups]:
            group.drop_retired_views()  # of memory that the traceback of the error held; the next pass does it
        usage = simulated.stats()
        # Free memory that is kept for the next pass, within a budget, and the buffers that weights pass through.
        free = sum(budget.slabs.nbytes for budget in {a.engine.budget for a in attachments})
        buffers = sum(a.engine.copy_engine.staging_bytes for a in attachments)
        # And what stays on the device from the first pass on, whatever becomes of that.
        engines = {a.engine for a in attachments}
        resident = sum(g.device_bytes for engine in engines for g in engine.groups if not g.streams)
        resident += sum(engine.persistent.nbytes for engine in engines)
        self.device, self.pinned = usage.live - free - resident, usage.pinned - buffers
        self.descriptors = {entry: _target(entry) for entry in os.listdir("/proc/self/fd")}

    def more_than(self, before: Resources) -> str:
        """What there is more than before; empty if nothing."""
        if self.device > before.device:
            return f"{self.device - before.device} device bytes"
        if self.pinned > before.pinned:
            return f"{self.pinned - before.pinned} pinned bytes"
        if len(self.descriptors) > len(before.descriptors):
            return f"open files: {set(self.descriptors.values()) - set(before.descriptors.values())}"
        return ""


def _target(entry: str) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{entry}")
    return None


class Before:
    """How the models of a world were."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tensors = {name: held(part) for name, part in world.parts.items()}
        self._places = {name: _places(part) for name, part in world.parts.items()}
        self._attributes = {name: attributes(part) for name, part in world.parts.items()}
        self._attachments = {name: _attachment(part) for name, part in world.parts.items()}
        self.resources = Resources(world)

    def assert_as_before(self) -> None:
        """Weights, the objects that hold them, where they are, hooks, and what the process holds."""
        world = self._world
        for name, part in world.parts.items():
            assert _attachment(part) == self._attachments[name], f"{name} has another attachment"
            assert attributes(part) == self._attributes[name], name
            now = held(part)
            assert now.keys() == self._tensors[name].keys()
            assert all(now[key] is tensor for key, tensor in self._tensors[name].items()), name
            assert _places(part) == self._places[name], name
            if attachment_of(part) is None and not self._attributes[name].get("_diffusers_hook"):
                assert "WatchedDict" not in {type(m._parameters).__name__ for m in part.modules()}
        world.assert_values()
        more = Resources(world).more_than(self.resources)
        assert not more, more


def _places(part: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Where all tensors are that do not stay on the device from the first pass on."""
    found = attachment_of(part)
    staying: set[int] = set()
    if found is not None:
        groups = [group for group in found.engine.groups if not group.streams]
        staying = {id(entry.tensor) for group in groups for entry in group.spec.entries}
        staying |= set(map(id, found.engine.persistent.tensors))
    tensors = {key: t for key, t in held(part).items() if id(t) not in staying}
    return {key: (t.device, t.is_pinned(), t.dtype, tuple(t.stride())) for key, t in tensors.items()}


def _attachment(part: nn.Module) -> tuple[int, object] | None:
    found = attachment_of(part)
    assert found is None or isinstance(found, Attachment)
    return None if found is None else (id(found), found.policy)


def try_every_fault(
    make: Callable[[], World],
    operation: Callable[[World], object],
    flavour: str,
    *,
    done: Callable[[World], object],
    undone: bool = True,
    computes: bool = True,
    settles: bool = True,
) -> int:
    """Do ``operation`` on a fresh world, with each fault in turn.

    Args:
        done: checks that all is as asked.
        undone: after an error all is as before; else all is as asked.
        settles: the operation can be tried again after an error.

    Returns:
        The number of faults, or a few more.
    """
    # All of them take a quarter of an hour; ``make soak`` has it.
    some = itertools.chain(range(1, 17), itertools.count(17, 7))
    for number in itertools.count(1) if "OFFLOAD_PLUS_EVERY_FAULT" in os.environ else some:
        world = make()
        before = Before(world)
        raised: BaseException | None = None
        with failing(number, flavour) as faults:
            try:
                operation(world)
            except BaseException as error:
                raised = error
        where = f"fault {number} ({flavour}), {faults.hit}"
        try:
            if faults.hit is None:
                assert raised is None
                done(world)
                world.close()
                return number - 1
            _assert_said(raised, flavour)
            notes = [note for note in getattr(raised, "__notes__", []) if not note.endswith("Nothing is lost.")]
            told = None if raised is None else "".join(notes)
            raised = None if raised is None else type(raised)()  # its traceback holds what failed
            assert not told, told
            if raised is not None and undone:
                before.assert_as_before()
                if computes:
                    world.assert_computes(passes=1)
                if settles:
                    operation(world)
            done(world)
            if computes:
                world.assert_computes()
            world.close()
        except BaseException as error:
            error.add_note(where)
            if raised is not None:
                error.add_note(f"after {type(raised).__name__}")
            raise
        del world, before
    raise AssertionError


def _assert_said(raised: BaseException | None, flavour: str) -> None:
    """An interruption is never swallowed, and an error is what failed, or one of ours that says so."""
    if flavour == "interrupt":
        assert isinstance(raised, KeyboardInterrupt), raised
    elif raised is not None:
        expected = (torch.OutOfMemoryError, MemoryError, OSError, dop.InvalidPolicyError)
        assert isinstance(raised, expected), repr(raised)
