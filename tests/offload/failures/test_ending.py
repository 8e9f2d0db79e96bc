"""Disabling: whatever fails, all else is done, no weight is lost, and what cannot be moved is named."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.stores import mapped_file
from diffusers_offload_plus.offload.stores.mapped_file import MappedFile
from tests.offload.failures.test_enabling import flavours
from tests.offload.failures.world import World, try_every_fault
from tests.offload.stores.disk.setup import on_disk
from tests.support.meter import Meter
from tests.support.models import assert_plain
from tests.support.policies import soaked


@flavours
@pytest.mark.parametrize("policy", ["block-stream", "half", "disk-stream", *soaked("block", "leaf-lean", "shared")])
def test_a_fault_that_passes_changes_nothing(
    policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path
) -> None:
    """What failed is tried again at the end. An interruption is raised when all is done."""

    def make() -> World:
        return World.that_ran(device, policy, tmp_path)

    def done(world: World) -> None:
        assert world.is_offloaded()
        for part in world.parts.values():
            assert_plain(part)
            assert all(t.device.type == "cpu" and not t.is_pinned() for t in part.parameters())
        world.assert_values()

    try_every_fault(make, lambda w: dop.disable_group_offload(w.pipe), flavour, done=done, undone=False)


@flavours
@pytest.mark.parametrize("policy", ["block-stream", "half", *soaked("disk-stream", "block", "leaf-lean")])
def test_what_was_written_on_the_device_gets_to_the_host(
    policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path
) -> None:
    """Disabled with gradients of a pass that wrote a weight without a trace."""

    def make() -> World:
        world = World.that_ran(device, policy, tmp_path)
        for model in (world.parts["denoiser"], world.plain["denoiser"]):
            model.scale.data.fill_(0.75)
            model.inlet.weight.data[3] = 0.5
        return world

    try_every_fault(make, lambda w: dop.disable_group_offload(w.pipe), flavour, done=World.assert_values, undone=False)


def test_weights_that_cannot_be_read_stay_on_disk_and_are_named(
    device: torch.device, meter: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails for some of one component: all else is in memory, of that component and of the others."""
    world = World.that_ran(device, "disk-stream", tmp_path)
    part: Any = world.parts["denoiser"]
    slab = next(slab for slab in on_disk(part) if slab.offset_of(part.blocks[1].up.weight) is not None)
    bad = {(place.file, place.offset) for place in slab.ranges}
    addresses = range(*_span(slab))
    equals, check = MappedFile.equals, mapped_file.check_mapped

    def checked(tensors: Any) -> None:
        tensors = list(tensors)
        if any(t.device.type == "cpu" and t.data_ptr() in addresses for t in tensors):
            raise dop.DiskTierError(errno.EIO, "cannot read", next(iter(bad))[0].path)
        check(tensors)

    from diffusers_offload_plus.offload.stores import host

    with monkeypatch.context() as patch:
        patch.setattr(host, "check_mapped", checked)
        with pytest.raises(dop.DiskTierError, match="cannot read") as caught:
            dop.disable_group_offload(world.pipe)
    assert equals is MappedFile.equals
    assert caught.value.errno == errno.EIO
    assert any("blocks.1" in note and "disk" in note for note in caught.value.__notes__)
    assert world.is_offloaded()
    for module in world.parts.values():
        assert attachment_of(module) is None
        assert_plain(module)
    elsewhere = {name for name, tensor in part.named_parameters() if tensor.data_ptr() in addresses}
    assert elsewhere
    assert all(name.startswith("blocks.1.") for name in elsewhere)
    world.assert_values()
    world.enable("block-stream")
    world.assert_computes()
    world.close()


def _span(slab: Any) -> tuple[int, int]:
    starts = [tensor.data_ptr() for tensor in slab.tensors]
    ends = [t.data_ptr() + t.numel() * t.element_size() for t in slab.tensors]
    return min(starts), max(ends)
