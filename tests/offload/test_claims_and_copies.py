"""What a claim or a copy under way must not outlive."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.meter import Meter


def test_looking_at_a_weight_before_calling_its_layer_does_not_gather_the_model(
    device: torch.device, meter: Meter
) -> None:
    """As text encoders do with ``self.wo.weight.dtype``: the peak stays that of a few layers."""

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(20))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x.to(layer.weight.dtype)))
            return x

    model = nn.Sequential(Looking())
    twin = copy.deepcopy(model).to(device)
    dop.enable_group_offload(model, device, offload_type="leaf_level", use_stream=True)
    x = torch.randn(2, 32).to(device)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(x), twin(x))
    report = dop.offload_report(model).components[0]
    assert report.peak_device_bytes <= 4 * report.streamed_bytes / 20
    del twin


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_change_through_a_held_reference_while_a_staged_copy_is_under_way(level: str, device: torch.device) -> None:
    """Nothing announces this write: no lookup, no iteration. The copy already made must not be used."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32)) for _ in range(4)))
    twin = copy.deepcopy(model).to(device)
    for one in (model, twin):
        held = list(one[2].parameters())

        def write(*_: object, held: list[nn.Parameter] = held) -> None:
            for parameter in held:
                parameter.mul_(0.5)

        one[1].register_forward_hook(write)  # the next group is on its way by then
    dop.enable_group_offload(model, device, offload_type=level, use_stream=True, low_cpu_mem_usage=True)
    x = torch.randn(2, 32).to(device)
    with torch.no_grad():
        for _ in range(4):
            assert torch.equal(model(x), twin(x))
    dop.disable_group_offload(model)
