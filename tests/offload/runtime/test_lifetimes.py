"""What is left after offloading many times: no thread, no file, no memory, no hook."""

from __future__ import annotations

import gc
import os
import threading

import pytest
import torch

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import Stack, assert_plain, assert_same, noise, seeded
from tests.support.policies import settings

POLICIES = ["block", "leaf-stream", "leaf-lean", "half", "auto", "disk-leaf-stream", "shared-leaf-stream"]


def held() -> tuple[int, int]:
    """Threads and open files of this process."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("policy", POLICIES)
def test_fifty_times(policy: str, device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: Stack(depth=3))
    x, want = noise(device), seeded(lambda: Stack(depth=3)).to(device)(noise(device)).detach()
    chosen = settings(policy, model, device)
    found = []
    for _ in range(50):
        dop.enable_group_offload(model, device, **chosen)
        with torch.no_grad():
            assert_same(model(x), want)
            assert_same(model(x), want)
        dop.disable_group_offload(model)
        found.append(held())
    assert_plain(model)
    assert max(found[10:]) <= max(found[:10]), "threads or files pile up"


def test_other_settings_each_time(device: torch.device, meter: Meter) -> None:
    """Enabled again and again, never disabled, and dropped at last."""
    model = seeded(lambda: Stack(depth=3))
    x, want = noise(device), seeded(lambda: Stack(depth=3)).to(device)(noise(device)).detach()
    found = []
    for _ in range(8):
        for policy in POLICIES:
            dop.enable_group_offload(model, device, **settings(policy, model, device))
            with torch.no_grad():
                assert_same(model(x), want)
        found.append(held())
    assert max(found[2:]) <= max(found[:2]), "threads or files pile up"


@pytest.mark.parametrize("policy", ["leaf-stream", "half", "disk-leaf-stream"])
def test_each_pass_in_a_thread_of_its_own(policy: str, device: torch.device, meter: Meter) -> None:
    """Threads end, and nothing of them stays; what they left under way is taken over by the next."""
    model = seeded(lambda: Stack(depth=4))
    x, want = noise(device), seeded(lambda: Stack(depth=4)).to(device)(noise(device)).detach()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    outputs: list[torch.Tensor] = []

    def run() -> None:
        with torch.no_grad():
            outputs.append(model(x))

    for _ in range(20):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    for output in outputs:
        assert_same(output, want)
    before = held()
    dop.disable_group_offload(model)
    assert held()[0] <= before[0]
