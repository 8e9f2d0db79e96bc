"""A device that is not the current one: its own streams, events and memory."""

from __future__ import annotations

import copy

import pytest
import torch

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import Stack, assert_same, noise, seeded
from tests.support.policies import EVERY, settings


@pytest.mark.parametrize("policy", EVERY)
def test_the_second_device(policy: str, device: torch.device, meter: Meter) -> None:
    if torch.accelerator.device_count() < 2:
        pytest.skip("needs two devices, and this machine has one")
    second = torch.device(device.type, 1)
    model = seeded(lambda: Stack(depth=6))
    twin, x = copy.deepcopy(model).to(second), noise(second)
    dop.enable_group_offload(model, second, **settings(policy, model, second))
    module = torch.get_device_module(device.type)
    with torch.no_grad():
        for number in range(4):
            assert torch.accelerator.current_device_index() == 0
            output = model(x)
            assert output.device == second
            assert_same(output, twin(x))
            if number == 1 and hasattr(module, "empty_cache"):  # as users do between two passes
                module.empty_cache()
                module.reset_peak_memory_stats(second)
        stream, current = torch.Stream(second), torch.accelerator.current_stream(second)
        stream.wait_stream(current)
        with stream:
            output = model(x)
        current.wait_stream(stream)
        assert_same(output, twin(x))
    del output
    dop.disable_group_offload(model)
    assert_same(list(model.state_dict().values()), list(twin.state_dict().values()))
