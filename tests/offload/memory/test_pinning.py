"""Host memory that cannot be pinned: slower, and said; never an error in the middle of set-up."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import Stack, assert_same, noise, seeded


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
    assert report.tier == "host"
    said = [decision.reason for decision in report.decisions if "could not be pinned" in decision.reason]
    if lean:
        assert said == []  # only the two buffers were to be
    else:
        assert [reason.split()[0] for reason in said] == [str(report.host_bytes)]
        assert "65536 bytes may be locked" in said[0]
    dop.disable_group_offload(model)
    assert_same(model.to(device)(x), want)
