"""Forward with gradients, backward through offloaded weights, and optimiser steps, beside the same training un-offloaded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.saved import WeightsChangedError
from tests.meter import Meter
from tests.policies import POLICIES

WIDTH = 32
CHOSEN = ["block", "block-2-stream", "leaf-stream", "leaf-lean"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + torch.tanh(self.linear(F.gelu(y))) * self.gate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.head = nn.Linear(WIDTH, 3)
        self.recompute = False

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return self.head(x)


def twins(policy: str, device: torch.device) -> tuple[Net, Net, torch.Tensor]:
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model).to(device)
    dop.enable_group_offload(model, device, **POLICIES[policy])
    return model, twin, torch.randint(0, 11, (2, 6)).to(device)


def assert_same_gradients(model: Net, twin: Net) -> None:
    for (name, mine), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None, name
        assert mine.grad.device == mine.device, name
        assert torch.equal(mine.grad.cpu(), theirs.grad.cpu()), name


@pytest.mark.parametrize("policy", CHOSEN)
def test_backward_gives_the_same_gradients(policy: str, device: torch.device, meter: Meter) -> None:
    model, twin, tokens = twins(policy, device)
    for one in (model, twin):
        one(tokens).square().sum().backward()
    assert_same_gradients(model, twin)
    for one in (model, twin):  # a second one accumulates
        one(tokens.flip(0)).square().sum().backward()
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("policy", CHOSEN)
def test_a_graph_does_not_keep_the_groups_alive(policy: str, device: torch.device, meter: Meter) -> None:
    model, twin, tokens = twins(policy, device)
    loss = twin(tokens).square().sum()
    activations = meter.live
    before = meter.live
    loss = model(tokens).square().sum()
    report = dop.offload_report(model).components[0]
    assert report.peak_device_bytes <= report.device_bound
    assert meter.live - before < report.streamed_bytes // 2 + activations
    loss.backward()
    assert dop.offload_report(model).components[0].peak_device_bytes <= report.device_bound + report.streamed_bytes // 3


@pytest.mark.parametrize("policy", CHOSEN)
def test_recomputed_blocks(policy: str, device: torch.device, meter: Meter) -> None:
    model, twin, tokens = twins(policy, device)
    model.recompute = twin.recompute = True
    for one in (model, twin):
        one(tokens).square().sum().backward()
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("make", ["adamw-fused", "adamw-foreach", "sgd"])
@pytest.mark.parametrize("policy", CHOSEN)
def test_training_steps_are_those_of_the_plain_model(policy: str, make: str, device: torch.device) -> None:
    model, twin, tokens = twins(policy, device)
    twin.cpu()  # steps run where the weights rest: compare with the CPU's arithmetic
    kinds: dict[str, Any] = {
        "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    }
    mine, theirs = kinds[make](model.parameters()), kinds[make](twin.parameters())
    for _ in range(3):
        twin.to(device)
        losses = [one(tokens).square().sum() for one in (model, twin)]
        for loss in losses:
            loss.backward()
        twin.cpu()
        for parameter in twin.parameters():
            assert parameter.grad is not None
        assert torch.equal(losses[0].cpu(), losses[1].cpu())
        for optimiser in (mine, theirs):
            optimiser.step()
            optimiser.zero_grad()
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(a.cpu(), b.cpu()), name


@pytest.mark.parametrize("policy", CHOSEN)
def test_weights_changed_before_backward(policy: str, device: torch.device) -> None:
    model, _, tokens = twins(policy, device)
    loss = model(tokens).square().sum()
    with torch.no_grad():
        model.blocks[2].linear.weight.mul_(2)
    with pytest.raises(WeightsChangedError, match="before changing them"):
        loss.backward()


@pytest.mark.parametrize("policy", CHOSEN)
def test_adapters_on_a_frozen_base(policy: str, device: torch.device, meter: Meter) -> None:
    torch.manual_seed(0)
    model = Net().requires_grad_(False)
    for block in model.blocks:
        block.gate.requires_grad_(True)
    twin = copy.deepcopy(model).to(device)
    dop.enable_group_offload(model, device, **POLICIES[policy])
    tokens = torch.randint(0, 11, (2, 6)).to(device)
    for one in (model, twin):
        one(tokens).square().sum().backward()
    for mine, theirs in zip(model.blocks, twin.blocks, strict=True):
        assert torch.equal(mine.gate.grad.cpu(), theirs.gate.grad.cpu())
        assert mine.linear.weight.grad is None
