"""Host memory that cannot be pinned: slower, and said; never an error in the middle of set-up."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.memory.staging import pageable
from diffusers_offload_plus.offload.stores.host import HostSlab
from tests.support.meter import Meter
from tests.support.models import Stack, assert_same, noise, seeded
from tests.support.virtual import engine_of


@torch.no_grad()
@pytest.mark.parametrize("lean", [False, True])
def test_what_cannot_be_pinned_is_pageable(
    lean: bool, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = seeded(Stack), noise(device)
    want = seeded(Stack).to(device)(x)
    empty = torch.empty

    def refused(*sizes: Any, **options: Any) -> torch.Tensor:
        if options.get("pin_memory"):
            raise RuntimeError("out of memory to lock\nand a trace")
        return empty(*sizes, **options)

    monkeypatch.setattr(torch, "empty", refused)
    monkeypatch.setattr("diffusers_offload_plus.offload.memory.staging._cuda_registered", lambda nbytes: None)
    monkeypatch.setattr("diffusers_offload_plus.offload.transfer.copy_engine.lockable_bytes", lambda: 65536)
    with caplog.at_level(logging.WARNING, "diffusers_offload_plus"):
        dop.enable_group_offload(model, device, offload_type="leaf_level", use_stream=True, low_cpu_mem_usage=lean)
        for _ in range(2):
            assert_same(model(x), want)
    assert "cannot be pinned (out of memory to lock)" in caplog.text
    report = dop.offload_report(model).components[0]
    assert report.tier == ("host" if lean else "staged host")
    said = [decision.reason for decision in report.decisions if "could not be pinned" in decision.reason]
    if lean:
        assert said == []  # only the two buffers were to be
    else:
        buffers = engine_of(model).copy_engine.staging_bytes
        assert [reason.split()[0] for reason in said] == [str(report.host_bytes - buffers)]
        assert "65536 bytes may be locked" in said[0]
    dop.disable_group_offload(model)
    assert_same(model.to(device)(x), want)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"use_stream": True}, {"vram_budget": "64KiB"}], ids=["streams", "budget"])
def test_weights_that_could_not_be_pinned_pass_pinned_buffers(
    settings: dict[str, Any], device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled by a thread: the calling one would wait for each copy from pageable memory."""
    model, x = seeded(Stack), noise(device)
    twin = seeded(Stack).to(device)
    with monkeypatch.context() as only_weights:
        only_weights.setattr("diffusers_offload_plus.offload.transfer.copy_engine.pinned", lambda n, _: pageable(n))
        dop.enable_group_offload(model, device, offload_type="leaf_level", **settings)
    threads: list[str] = []
    original = HostSlab.read_into

    def read_into(self: HostSlab, target: torch.Tensor, start: int = 0) -> None:
        assert target.is_pinned()
        threads.append(threading.current_thread().name)
        original(self, target, start)

    monkeypatch.setattr(HostSlab, "read_into", read_into)
    for number in range(3):
        assert_same(model(x), twin(x))
        for one in (model, twin):
            one.blocks[number].up.weight.data.mul_(0.5)
    assert threads
    assert {name.rpartition("_")[0] for name in threads} == {"offload-plus-reader"}
    report = dop.offload_report(model).components[0]
    assert report.tier == "staged host"
    assert not any(stall.bottleneck == "disk" for stall in report.stalls)
    dop.disable_group_offload(model)
    assert_same(list(model.state_dict().values()), list(twin.state_dict().values()))
