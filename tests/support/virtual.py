"""Models whose groups take known bytes and known seconds, and passes over them in the simulated accelerator's time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.memory.device_budget import least_limit
from diffusers_offload_plus.offload.planning.step_time import Bandwidth, GroupCost

__all__ = ["UNIT", "Timed", "engine_of", "exact_speeds", "limit_of", "run", "seconds_of", "settled", "timed"]

UNIT = 4096
"""Bytes. A group of so many units has exactly so many packed bytes."""


class Timed(nn.Module):
    """Weighs a number of units, and computes for a number of seconds."""

    def __init__(self, units: int, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units * UNIT // 4), requires_grad=False)
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from tests.simulated import compute_for

        compute_for(self.seconds)
        return x + self.weight[:1]  # takes no time, and has to come after the copy


def timed(groups: Sequence[tuple[int, float]]) -> nn.Sequential:
    """Blocks of these units and seconds."""
    return nn.Sequential(*(Timed(units, seconds) for units, seconds in groups)).eval()


def costs_of(groups: Sequence[tuple[int, float]]) -> list[GroupCost]:
    """The same for the step model."""
    return [GroupCost(nbytes=units * UNIT, compute_seconds=seconds) for units, seconds in groups]


@pytest.fixture
def exact_speeds(device: torch.device) -> Iterator[None]:
    """Kernels take no time but for what a model says, and a copy one second a unit; times are sums of small dyadic
    numbers, so they are exact."""
    if device.type != "sim":
        pytest.skip("time can be set on the simulated accelerator alone")
    from tests.simulated import set_compute, set_link, timing

    with timing():
        set_compute()
        set_link(bandwidth=UNIT)
        yield


def set_speed(speed: Bandwidth) -> None:
    """Of copies from host to device."""
    from tests.simulated import set_link

    set_link(bandwidth=speed.bytes_per_second, latency=speed.seconds_per_copy)


def limit_of(units: float) -> int:
    """A ``vram_budget`` that leaves so many units for groups."""
    return least_limit(int(units * UNIT))


def engine_of(model: nn.Module) -> Any:
    attachment = attachment_of(model)
    assert attachment is not None
    return attachment.engine


def run(model: nn.Module, passes: int = 1, device: str = "sim") -> None:
    """So many passes, nothing of which the host waits for."""
    with torch.no_grad():
        x = torch.zeros(1, device=device)
        for _ in range(passes):
            model(x)


def seconds_of(model: nn.Module, passes: int = 1) -> float:
    """Virtual seconds of a pass from now on, mean of so many."""
    begin, end = (torch.Event("sim", enable_timing=True) for _ in range(2))
    begin.record()
    run(model, passes)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / passes


def settled(model: nn.Module, passes: int = 4, device: str = "sim") -> Any:
    """The report on two passes after so many others."""
    run(model, passes, device)
    engine_of(model).copy_engine.stall_timer.reset()
    run(model, 2, device)
    torch.sim.synchronize()
    return dop.offload_report(model)
