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


CASES = [(Forked, "leaf-record"), *((kind, policy) for kind in (Forked, Reading) for policy in
         ("leaf-stream", "half", "whole", "disk-leaf-stream"))]  # fmt: skip


@pytest.mark.parametrize(("kind", "policy"), CASES)
def test_a_layer_called_or_read_on_two_streams(
    kind: type[Forked | Reading], policy: str, device: torch.device, meter: Meter
) -> None:
    model = seeded(lambda: nn.Sequential(*(kind() for _ in range(5))))
    with torch.no_grad():
        want = seeded(lambda: nn.Sequential(*(kind() for _ in range(5)))).to(device)(noise(device)).cpu()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    side = torch.Stream(device=device)
    for block in model:
        block.side = side
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(noise(device)), want)
    dop.disable_group_offload(model)
