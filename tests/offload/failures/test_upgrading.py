"""Upgrading from stock hooks and loading to disk: whatever fails, the stock hooks are there again, or nothing is."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.diffusers_api import stock_hooks
from tests.offload.failures.test_enabling import flavours
from tests.offload.failures.world import World, try_every_fault
from tests.support.faults import failing
from tests.support.meter import Meter
from tests.support.models import assert_same, noise


@flavours
@pytest.mark.parametrize(
    "stock",
    [{"use_stream": True}, {}, {"use_stream": True, "low_cpu_mem_usage": True}],
    ids=["stream", "plain", "low-memory"],
)
def test_upgrading(stock: dict[str, Any], flavour: str, device: torch.device, meter: Meter) -> None:
    from diffusers.hooks import apply_group_offloading

    def make() -> World:
        world = World(device)
        for part in world.parts.values():
            apply_group_offloading(part, device, offload_type="block_level", num_blocks_per_group=1, **stock)
        world.assert_computes(0)
        return world

    def operation(world: World) -> None:
        dop.upgrade(world.pipe)

    def done(world: World) -> None:
        assert world.is_offloaded("encoder", "denoiser", "decoder")

    faults = try_every_fault(make, operation, flavour, done=done)
    assert faults > 3 or flavour not in ("out-of-memory", "memory-error", "interrupt")


def test_stock_hooks_run_as_before(device: torch.device, meter: Meter) -> None:
    """After upgrades that failed they onload and offload."""
    from diffusers.hooks import apply_group_offloading

    world = World(device)
    for part in world.parts.values():
        apply_group_offloading(part, device, offload_type="leaf_level", use_stream=True)
    hooks = {name: [hook for _, _, hook in stock_hooks(part)] for name, part in world.parts.items()}
    for number in (1, 5, 11):
        with failing(number, "interrupt"), pytest.raises(KeyboardInterrupt):
            dop.upgrade(world.pipe)
        for name, part in world.parts.items():
            assert [hook for _, _, hook in stock_hooks(part)] == hooks[name]
    with torch.no_grad():
        for name, part in world.parts.items():
            for _ in range(3):
                assert_same(part(noise(device)), world.plain[name].to(device)(noise(device)), name)
            assert all(p.device.type == "cpu" for p in part.parameters())
    dop.upgrade(world.pipe)
    world.plain = {name: part.to("cpu") for name, part in world.plain.items()}
    world.assert_computes()
    world.close()


class Small(ModelMixin, ConfigMixin):
    """A model that can be saved and loaded, of few tensors."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])


@flavours
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_loading(dtype: torch.dtype | None, flavour: str, device: torch.device, meter: Meter, tmp_path: Path) -> None:
    """Nothing is left of what was being loaded: no descriptor, no pinned or device memory."""
    torch.manual_seed(0)
    small = Small()
    small.save_pretrained(tmp_path / "model")

    def load() -> Any:
        return dop.load_offloaded(
            Small, tmp_path / "model", device, offload_to_disk_path=tmp_path / "store", torch_dtype=dtype
        )

    def held() -> tuple[int, int, int]:
        from tests.simulated import stats

        return stats().live, stats().pinned, len(os.listdir("/proc/self/fd"))

    dop.disable_group_offload(load())  # what is opened once for good
    gc.collect()
    before, number = held(), 0
    while True:
        number += 1
        with failing(number, flavour) as faults:
            try:
                load()
            except (torch.OutOfMemoryError, MemoryError, OSError, KeyboardInterrupt, dop.InvalidPolicyError):
                assert faults.hit
        gc.collect()
        assert all(mine <= theirs for mine, theirs in zip(held(), before, strict=True)), faults.hit
        if faults.hit is None:
            break
    assert number > 10 or flavour == "memory-error"
    model = load()
    wanted = small.to(dtype or torch.float32).state_dict()
    assert all(torch.equal(value.cpu(), wanted[key]) for key, value in model.state_dict().items())
    dop.disable_group_offload(model)
