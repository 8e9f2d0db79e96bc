"""Forwards that compute on streams of their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import WIDTH, Stack, assert_same, noise, seeded
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


# Memory that other streams still use when it is taken over


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
def test_upgrading_after_an_interrupted_stock_pass(
    at: int, record: bool, level: str, device: torch.device, meter: Meter
) -> None:
    """Stock hooks leave copies under way, and groups on the device."""
    model: Any = seeded(lambda: Stack(depth=8))
    twin, x = copy.deepcopy(model).to(device), noise(device)
    apply_group_offloading(
        model, device, torch.device("cpu"), offload_type=level, num_blocks_per_group=1, use_stream=True,
        record_stream=record,
    )  # fmt: skip

    def fail(*_: object) -> None:
        raise KeyError

    with torch.no_grad():
        for _ in range(2):
            assert_same(model(x), twin(x))
        handle = model.blocks[at].up.register_forward_pre_hook(fail)
        with pytest.raises(KeyError):
            model(x)
        handle.remove()
        dop.upgrade(model)
        for _ in range(2):
            assert_same(model(x), twin(x))
    dop.disable_group_offload(model)
    assert_same(list(model.state_dict().values()), list(twin.state_dict().values()))


@pytest.mark.parametrize("policy", ["block", "leaf-stream", "half", "disk"])
@pytest.mark.parametrize("when", ["enabling", "a new plan", "loading", "disabling"])
def test_weights_that_a_stream_still_writes(when: str, policy: str, device: torch.device, meter: Meter) -> None:
    """A copy to pinned host memory that nobody has waited for, on a stream of the user's."""
    model: Any = seeded(lambda: Stack(depth=4))
    twin, x, stream = copy.deepcopy(model).to(device), noise(device), torch.Stream(device)
    fresh = [torch.randn(p.shape).to(device) for p in model.blocks[1].parameters()]
    chosen = settings(policy, model, device)

    def write() -> None:
        for mine, theirs, value in zip(model.blocks[1].parameters(), twin.blocks[1].parameters(), fresh, strict=True):
            pinned = torch.empty(value.shape, pin_memory=True)
            stream.wait_stream(torch.accelerator.current_stream(device))
            with stream:
                pinned.copy_(value, non_blocking=True)
            mine.data = pinned
            theirs.data = value.clone()

    with torch.no_grad():
        if when != "enabling":
            dop.enable_group_offload(model, device, **(chosen if when != "a new plan" else {}))
            assert_same(model(x), twin(x))
        write()
        if when in ("enabling", "a new plan"):
            dop.enable_group_offload(model, device, **chosen)
        elif when == "disabling":
            dop.disable_group_offload(model)
            assert_same([p.to(device) for p in model.parameters()], list(twin.parameters()))
            return
        for _ in range(2):
            assert_same(model(x), twin(x))
    dop.disable_group_offload(model)
