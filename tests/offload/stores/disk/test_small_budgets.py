"""A budget of host memory that not even the largest group fits into is kept all the same: groups travel in pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from tests.support.meter import Meter
from tests.support.models import Stack, assert_same, nbytes, noise, seeded
from tests.support.policies import DIRECTORY

LEVELS: dict[str, dict[str, Any]] = {
    "block": {"offload_type": "block_level"},
    "block-stream": {"offload_type": "block_level", "use_stream": True},
    "block-lean": {"offload_type": "block_level", "use_stream": True, "low_cpu_mem_usage": True},
    "leaf-stream": {"offload_type": "leaf_level", "use_stream": True},
}


@torch.no_grad()
@pytest.mark.parametrize("budget", [1024, 3001, 20_000, 60_000, 100_000, 1_000_000])
@pytest.mark.parametrize("level", LEVELS)
def test_the_budget_holds(level: str, budget: int, device: torch.device, meter: Meter) -> None:
    model, x = seeded(Stack), noise(device)
    want = seeded(Stack).to(device)(x)
    pinned = meter.pinned
    dop.enable_group_offload(model, device, **LEVELS[level], offload_to_disk_path=DIRECTORY, host_budget=budget)
    link = attachment_of(model).engine.copy_engine  # type: ignore[union-attr]
    for _ in range(3):
        copies, moved = link.copies, meter.copies
        output = model(x)
        if meter.exact:
            assert meter.pinned - pinned <= budget
            assert link.copies - copies == meter.copies - moved, "each piece is counted as a copy"
        assert_same(output, want)
    report = dop.offload_report(model).components[0]
    assert report.host_bytes <= budget
    assert report.host_bytes > 0
    assert (report.disk_bytes == 0) == (budget > 2 * nbytes(model))
    dop.disable_group_offload(model)


@torch.no_grad()
@pytest.mark.parametrize("budget", [1024, 60_000])
def test_what_was_written_is_read_in_pieces_as_well(budget: int, device: torch.device, meter: Meter) -> None:
    model, plain, x = seeded(Stack), seeded(Stack), noise(device)
    dop.enable_group_offload(
        model, device, use_stream=True, offload_to_disk_path=DIRECTORY, host_budget=budget, keep=False
    )
    model(x)
    for one in (model, plain):
        for parameter in one.parameters():
            parameter.data.view(-1)[::7].mul_(0.5)
    assert_same(model(x), plain.to(device)(x))
    dop.disable_group_offload(model)
