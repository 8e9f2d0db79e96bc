"""Enabling, with other settings too: whatever fails, all components are as they were, or all are as asked."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.changeover import Changeover
from tests.offload.failures.world import World, place, try_every_fault
from tests.support.meter import Meter
from tests.support.policies import soaked
from tests.support.virtual import engine_of

flavours = pytest.mark.parametrize(
    "flavour", ["out-of-memory", "interrupt", "EMFILE", *soaked("memory-error", "ENOSPC", "EIO")]
)


def fails(policy: str, flavour: str) -> bool:
    """Whether there is anything that can fail like that: without disk or sharing no file is touched."""
    return flavour not in ("ENOSPC", "EIO", "EMFILE") or policy.startswith(("disk", "shared"))


@flavours
@pytest.mark.parametrize(
    "policy", ["block-stream", "shared", "disk-stream", *soaked("block", "leaf-lean", "half", "disk-leaf-stream")]
)
def test_several_components(policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """One is put on the device whole; the others are offloaded, one after the other."""

    def operation(world: World) -> None:
        world.enable(policy, exclude_modules=["decoder"], **place(tmp_path, policy))

    def done(world: World) -> None:
        assert world.is_offloaded("encoder", "denoiser")
        assert {p.device for p in world.parts["decoder"].parameters()} == {device}

    faults = try_every_fault(lambda: World(device), operation, flavour, done=done)
    assert faults > 3 or not fails(policy, flavour)


@flavours
def test_models_that_are_on_the_device(flavour: str, device: torch.device, meter: Meter) -> None:
    """They go back there, and weights that share memory share it again."""

    def make() -> World:
        world = World(device)
        for part in world.parts.values():
            part.to(device)
        return world

    def done(world: World) -> None:
        assert world.is_offloaded("encoder", "denoiser", "decoder")

    faults = try_every_fault(make, lambda world: world.enable("block-stream"), flavour, done=done)
    assert faults > 3 or not fails("block-stream", flavour)


@flavours
@pytest.mark.parametrize("keep", [False, True])
def test_weights_that_are_in_a_checkpoint_or_kept(
    keep: bool, flavour: str, device: torch.device, meter: Meter, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({key: value.clone() for key, value in World(device).parts["denoiser"].state_dict().items()}, file)
    where = {"offload_to_disk_path": str(tmp_path / "store"), "checkpoint": str(file), "keep": keep}

    def make() -> World:
        return World(device, {"denoiser": _loaded(file)})

    def done(world: World) -> None:
        assert world.is_offloaded("denoiser")
        report = dop.offload_report(world.parts["denoiser"]).components[0]
        # A file that cannot be read is of no use; one for which something has run out is, later.
        assert not keep or flavour == "EIO" or report.disk_written_bytes == 0

    def operation(world: World) -> None:
        world.enable("disk-leaf-stream", **where, protect=None if keep else "copy")

    assert try_every_fault(make, operation, flavour, done=done) > 3 or flavour == "memory-error"


def _loaded(file: Path) -> nn.Module:
    part = World(torch.device("cpu")).parts["denoiser"]
    part.load_state_dict(load_file(file), assign=True)
    part.outlet.weight = part.inlet.weight
    return part


CHANGES = {
    "host to pinned": ("block", "leaf-stream"),
    "host to disk": ("block-stream", "disk"),
    "disk to host": ("disk", "block-stream"),
    "disk to disk": ("disk", "disk-leaf-stream"),
    "budget": ("half", "block"),
    "shared to disk": ("shared", "disk"),
}


@flavours
@pytest.mark.parametrize(
    "change", ["host to disk", "disk to host", *soaked("host to pinned", "disk to disk", "budget", "shared to disk")]
)
def test_other_settings(change: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """An offloaded component becomes one that is not, and the others get other settings."""
    before, after = CHANGES[change]

    def make() -> World:
        world = World(device)
        world.enable(before, **place(tmp_path, before))
        world.assert_computes(passes=1)
        return world

    def operation(world: World) -> None:
        world.enable(after, exclude_modules=["encoder"], **place(tmp_path, after))

    def done(world: World) -> None:
        assert world.is_offloaded("denoiser", "decoder")
        assert {p.device for p in world.parts["encoder"].parameters()} == {device}

    assert try_every_fault(make, operation, flavour, done=done) > 3 or not fails(before + after, flavour)


def test_one_stays_and_another_comes(device: torch.device, meter: Meter) -> None:
    """A component that comes to a pipeline whose others stay as they are shares their budget, or does not come."""

    def make() -> World:
        world = World(device)
        first = {"vram_budget": 60_000}
        dop.enable_group_offload(world.parts["encoder"], device, **first)
        return world

    def done(world: World) -> None:
        budgets = {id(engine_of(part).budget) for part in world.parts.values()}
        assert len(budgets) == 1

    def operation(world: World) -> None:
        dop.enable_group_offload(world.pipe, device, vram_budget=60_000)

    assert try_every_fault(make, operation, "interrupt", done=done) > 3


def test_nothing_is_left_to_the_garbage_collector(
    device: torch.device, meter: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared for components that are not attached has files open, and is dropped at once."""
    world = World(device)
    before = len(os.listdir("/proc/self/fd"))

    def fails(self: Changeover, attachment: object) -> None:
        raise MemoryError

    gc.collect()
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Changeover, "attach", fails)
            with contextlib.suppress(MemoryError):
                world.enable("disk-stream", **place(tmp_path, "disk"))
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()
    world.assert_values()
