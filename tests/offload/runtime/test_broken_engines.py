"""Engines broken on purpose: each must be caught as a race, even where the stale bytes happen to equal the right ones.

All weights have the bits that the simulated accelerator poisons memory with, so no value can tell right from wrong.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.transfer import copy_engine, transfer
from tests.support.meter import meter_for


def poisoned_model() -> nn.Module:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)) for _ in range(5)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(torch.int32).fill_(-1)
    return model


def races(device: torch.device, **settings: Any) -> int:
    meter = meter_for(device)
    model = poisoned_model()
    dop.enable_group_offload(model, device, use_stream=True, **settings)
    meter.reset()
    x = torch.ones(2, 32).to(device)
    with torch.no_grad():
        for _ in range(3):
            model(x)
    found = meter.races
    dop.disable_group_offload(model)
    return found


class Deaf:
    """A stream that does not wait for others."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def wait_stream(self, other: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> Any:
        return self.stream.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self.stream.__exit__(*error)


@pytest.fixture(autouse=True)
def _needs_race_counts(device: torch.device) -> None:
    if device.type != "sim":
        pytest.skip("races are counted on the simulated accelerator; on CUDA the sanitizer looks for them")


@pytest.mark.parametrize("settings", [{}, {"record_stream": True}, {"low_cpu_mem_usage": True}])
def test_the_engine_as_it_is_has_none(settings: dict[str, Any], device: torch.device) -> None:
    assert races(device, **settings) == 0


def test_no_wait_before_a_read(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.Transfer, "wait", lambda self, group=None, stream=None: None)
    assert races(device) > 0


def test_no_wait_before_an_overwrite(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    original = copy_engine.CopyEngine.__init__

    def deafened(self: copy_engine.CopyEngine, *args: Any) -> None:
        original(self, *args)
        self._stream = Deaf(self._stream)

    monkeypatch.setattr(copy_engine.CopyEngine, "__init__", deafened)
    assert races(device) > 0


def test_freed_too_early(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: transfer.Transfer, stream: object = None) -> bool:
        assert self.slab is not None
        current = torch.accelerator.current_stream(self.slab.bytes.device)
        current.wait_event(self.slab.copied)
        self.slab.streams[current.stream_id] = current  # and no record_stream
        return True

    monkeypatch.setattr(transfer.Transfer, "_order", forgetful)
    assert races(device, record_stream=True) > 0
