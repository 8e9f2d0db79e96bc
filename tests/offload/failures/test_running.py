"""Passes, ``onloaded`` and a model that has grown: whatever fails, nothing is lost, and the next attempt is right."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.diffusers_api import HOOK_NAME, registry_of
from tests.offload.failures.test_enabling import fails, flavours
from tests.offload.failures.world import World, place, try_every_fault
from tests.support.faults import failing
from tests.support.meter import Meter
from tests.support.models import Block, held, noise, seeded
from tests.support.policies import soaked

policies = pytest.mark.parametrize(
    "policy", ["block-stream", "half", "disk-stream", *soaked("block", "leaf-lean", "shared", "disk", "auto")]
)


def offloaded(world: World) -> None:
    assert world.is_offloaded("encoder", "denoiser", "decoder")


@flavours
@pytest.mark.parametrize("policy", ["block-stream", "lean", "half", *soaked("disk-stream", "block", "shared", "auto")])
@pytest.mark.parametrize("passes", [0, *soaked(1)], ids=["first", "second"])
def test_a_pass(passes: int, policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    def make() -> World:
        world = World(device)
        world.enable(policy, **place(tmp_path, policy))
        if passes:
            world.assert_computes(passes)
        return world

    def operation(world: World) -> None:
        with torch.no_grad():
            world.parts["denoiser"](noise(device))

    faults = try_every_fault(make, operation, flavour, done=offloaded)
    assert faults > 3 or not fails(policy, flavour)


@pytest.mark.parametrize("number", [1, 2])
def test_a_copy_in_pieces(number: int, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """A piece is on its way when there is no buffer for the next: the memory is not given up under it."""
    world = World(device)
    world.enable("disk-in-pieces", **place(tmp_path, "disk"))
    with (
        contextlib.suppress(KeyboardInterrupt),
        torch.no_grad(),
        failing(number, lambda kind: KeyboardInterrupt() if kind == "pinned" else None) as faults,
    ):
        world.parts["denoiser"](noise(device))
    assert faults.hit
    world.assert_computes()
    world.close()


@flavours
@pytest.mark.parametrize("policy", ["half", *soaked("block-stream")])
def test_a_pass_with_gradients(policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """At its end weights are compared, so that may fail as well."""

    def make() -> World:
        return World.that_ran(device, policy, tmp_path)

    def operation(world: World) -> None:
        with torch.enable_grad():
            world.parts["denoiser"](noise(device))

    try_every_fault(make, operation, flavour, done=offloaded)


@flavours
@policies
def test_onloaded(policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    def make() -> World:
        return World.that_ran(device, policy, tmp_path)

    def operation(world: World) -> None:
        with dop.onloaded(world.parts["denoiser"]) as model:
            assert {p.device for p in model.parameters()} == {device}

    try_every_fault(make, operation, flavour, done=offloaded)


@flavours
@policies
def test_a_write_in_onloaded_is_kept(
    policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path
) -> None:
    """It is on the device alone when the block ends, so it has to get to the host, whatever fails."""

    def make() -> World:
        return World.that_ran(device, policy, tmp_path)

    def write(model: nn.Module) -> None:
        for name, tensor in held(model).items():
            if name in ("blocks.1.up.weight", "inlet.bias", "scale"):
                tensor.data.fill_(0.25)

    def operation(world: World) -> None:
        with torch.set_grad_enabled(policy == "half"), dop.onloaded(world.parts["denoiser"]) as model:
            write(world.plain["denoiser"])
            write(model)

    try_every_fault(make, operation, flavour, done=World.assert_values, undone=False)


def test_hooks_that_others_removed(device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """diffusers takes them off, changes the model and reads a setting, which puts them back. If that fails, the next
    pass has them."""

    def make() -> World:
        return World.that_ran(device, "block-stream", tmp_path)

    def operation(world: World) -> None:
        part, plain = world.parts["denoiser"], world.plain["denoiser"]
        registry = registry_of(part)
        assert registry is not None
        hook: Any = registry.get_hook(HOOK_NAME)
        registry.remove_hook(HOOK_NAME, recurse=True)
        for model in (part, plain):
            model.blocks.insert(1, seeded(Block, 5))
        assert hook.config is not None

    def done(world: World) -> None:
        assert registry_of(world.parts["denoiser"]) is not None
        world.assert_values()

    assert try_every_fault(make, operation, "out-of-memory", done=done, undone=False) > 0


@flavours
@pytest.mark.parametrize("policy", ["block-stream", "disk-stream", *soaked("half", "shared")])
def test_a_model_that_has_grown(policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """A block is put in and another taken out: the next pass offloads anew, or the one after it."""

    def make() -> World:
        world = World.that_ran(device, policy, tmp_path)
        for part in (world.parts["denoiser"], world.plain["denoiser"]):
            part.blocks.insert(1, seeded(Block, 5))
            del part.blocks[0]
        return world

    def operation(world: World) -> None:
        with torch.no_grad():
            world.parts["denoiser"](noise(device))

    try_every_fault(make, operation, flavour, done=World.assert_values, undone=False)
