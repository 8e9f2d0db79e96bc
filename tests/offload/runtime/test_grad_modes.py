"""What gradients cost: nothing where nothing is trained, little where an adapter is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import Block, noise, seeded
from tests.support.policies import settings

POLICIES = ["block", "block-stream", "leaf-stream", "half"]


class Adapted(nn.Module):
    """A frozen block with a low-rank adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Block().requires_grad_(False)
        width = self.base.up.in_features
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def figures(model: nn.Module, x: torch.Tensor, *, grad: bool) -> Any:
    from tests.simulated import reset_stats, stats

    reset_stats()
    with torch.set_grad_enabled(grad):
        model(x)
    assert stats().races == 0, stats().race_log
    return stats()


@pytest.fixture(autouse=True)
def _needs_counts(device: torch.device) -> None:
    if device.type != "sim":
        pytest.skip("copies and waits are counted on the simulated accelerator")


@pytest.mark.parametrize("policy", POLICIES)
def test_where_nothing_is_trained_gradients_cost_nothing(policy: str, device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: nn.Sequential(*(Block() for _ in range(6)))).requires_grad_(False)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    x = noise(device)
    for _ in range(3):
        without, with_grad = (figures(model, x, grad=grad) for grad in (False, True))
    for name in ("copies", "h2d", "d2h", "host_syncs"):
        assert getattr(with_grad, name) == getattr(without, name), name
    dop.disable_group_offload(model)


@pytest.mark.parametrize("policy", ["block", "block-stream", "leaf-stream"])
def test_a_frozen_base_under_an_adapter_is_not_compared(policy: str, device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: nn.Sequential(*(Adapted() for _ in range(6))))
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    x = noise(device)
    for _ in range(3):
        without, with_grad = (figures(model, x, grad=grad) for grad in (False, True))
    adapter = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert with_grad.h2d <= without.h2d + 2 * adapter, "nothing but the adapter is copied twice"
    waits = 1 if settings(policy, model, device).get("use_stream") else 1 + len(model)
    assert with_grad.host_syncs <= without.host_syncs + waits, "one wait for all comparisons; one a copy if not pinned"
    dop.disable_group_offload(model)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("policy", ["block-stream", "leaf-stream"])
def test_a_write_without_a_trace_to_what_is_trained_is_kept(
    policy: str, again: bool, device: torch.device, meter: Meter
) -> None:
    class Writes(Adapted):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.up.weight.data.mul_(1.5)
            return super().forward(x)

    def build() -> nn.Sequential:
        return nn.Sequential(*(Writes() for _ in range(4)))

    model, plain = seeded(build), seeded(build).to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    x = noise(device)
    for _ in range(3):
        wanted, found = plain(x), model(x)
        if again:  # a block that runs twice in a pass uses what it wrote
            wanted, found = plain[1](wanted), model[1](found)
        assert torch.equal(found, wanted)
    dop.disable_group_offload(model)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b.cpu())
