"""Enabling: whatever fails, all components are as they were, or all are as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.offload.failures.world import World, try_every_fault
from tests.support.faults import FLAVOURS
from tests.support.meter import Meter

POLICIES = ("block", "block-stream", "leaf-lean", "shared-leaf-stream", "half", "disk", "disk-block-stream-budget")


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("policy", POLICIES)
def test_enabling_several(policy: str, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """One component is put on the device whole; the others are offloaded, one after the other."""

    def operation(world: World) -> None:
        world.enable(policy, exclude_modules=["decoder"], **_in(tmp_path, policy))

    def done(world: World) -> None:
        assert world.is_offloaded("encoder", "denoiser")
        assert {p.device for p in world.parts["decoder"].parameters()} == {device}

    faults = try_every_fault(lambda: World(device), operation, flavour, done=done)
    assert faults > 3 or (flavour in ("ENOSPC", "EIO", "EMFILE") and "disk" not in policy and "shared" not in policy)


def _in(folder: Path, policy: str) -> dict[str, Any]:
    return {"offload_to_disk_path": str(folder / "store")} if policy.startswith("disk") else {}
