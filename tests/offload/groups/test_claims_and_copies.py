"""What a claim or a copy under way must not outlive."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.groups.param_group import GroupState, ParamGroup
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from tests.support.meter import Meter
from tests.support.policies import settings


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


@pytest.mark.parametrize("policy", ["block-stream", "leaf-stream", "disk-leaf-stream"])
def test_the_next_group_is_under_way_while_one_computes(policy: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32)) for _ in range(6)))
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    seen: list[tuple[int, GroupState]] = []
    x = torch.randn(2, 32).to(device)
    with torch.no_grad():
        model(x)
        for number, block in enumerate(model):
            block[0].register_forward_hook(lambda *_, n=number: seen.append((n, following(model, n).state)))
        model(x)
    assert seen[:-1] == [(number, GroupState.PREFETCHED) for number in range(5)]
    dop.disable_group_offload(model)


def following(model: nn.Module, number: int) -> ParamGroup:
    """The group of the block after this one."""
    wanted = model[(number + 1) % len(model)][0].__dict__["_parameters"]
    weight = dict.__getitem__(wanted, "weight")
    attachment = attachment_of(model)
    assert attachment is not None
    return next(g for g in attachment.engine.groups if any(e.tensor is weight for e in g.spec.entries))


@pytest.mark.parametrize("policy", ["block", "leaf-stream", "leaf-lean", "disk-leaf-stream"])
def test_weights_given_a_home_in_inference_mode_can_be_written_later(policy: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32)) for _ in range(3)))
    added = nn.Sequential(nn.Linear(32, 32))
    twin = copy.deepcopy(nn.Sequential(*model, added)).to(device)
    x = torch.randn(2, 32).to(device)
    with torch.inference_mode():
        dop.enable_group_offload(model, device, **settings(policy, model, device))
        model(x)
        model.append(added)
        assert torch.equal(model(x), twin(x))
    assert not any(p.is_inference() or p.data.is_inference() for p in model.parameters())
    for one in (model, twin):
        with torch.no_grad():
            if one is model:
                with dop.onloaded(model):
                    one[3][0].weight.mul_(0.5)
            else:
                one[3][0].weight.mul_(0.5)
    assert torch.equal(model(x), twin(x))
    dop.disable_group_offload(model)
    assert torch.equal(model[3][0].weight, twin[3][0].weight.cpu())
