"""Forwards that compute on streams of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import WIDTH, assert_same, noise, seeded
from tests.support.policies import settings


class Forked(nn.Module):
    """Calls its layer on the current stream and on another one, which waits for the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.side: torch.Stream | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.side is None:
            return self.layer(x) + self.layer(x)
        main = torch.accelerator.current_stream()
        ready = main.record_event()
        y = self.layer(x)
        self.side.wait_event(ready)
        with self.side:
            z = self.layer(x)
        x.record_stream(self.side)
        main.wait_stream(self.side)
        z.record_stream(main)
        return y + z


@pytest.mark.parametrize("policy", ["leaf-stream", "leaf-record", "half", "disk-leaf-stream"])
def test_a_layer_called_on_two_streams_at_once(policy: str, device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: nn.Sequential(*(Forked() for _ in range(5))))
    with torch.no_grad():
        want = seeded(lambda: nn.Sequential(*(Forked() for _ in range(5)))).to(device)(noise(device)).cpu()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    side = torch.Stream(device=device)
    for block in model:
        block.side = side
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(noise(device)), want)
    dop.disable_group_offload(model)


class Reading(nn.Module):
    """Calls its layer on the current stream, and reads the weight of the layer on another one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.side: torch.Stream | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.side is None:
            return self.layer(x) + self.layer.weight.sum() + self.layer(x)
        main = torch.accelerator.current_stream()
        ready = main.record_event()
        y = self.layer(x)
        self.side.wait_event(ready)
        with self.side:
            z = self.layer.weight.sum()
        main.wait_stream(self.side)
        z.record_stream(main)
        return y + z + self.layer(x)


@pytest.mark.parametrize("policy", ["leaf-stream", "half", "whole", "disk-leaf-stream"])
def test_a_weight_read_on_another_stream(policy: str, device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: nn.Sequential(*(Reading() for _ in range(5))))
    with torch.no_grad():
        want = seeded(lambda: nn.Sequential(*(Reading() for _ in range(5)))).to(device)(noise(device)).cpu()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    side = torch.Stream(device=device)
    for block in model:
        block.side = side
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(noise(device)), want)
    dop.disable_group_offload(model)
