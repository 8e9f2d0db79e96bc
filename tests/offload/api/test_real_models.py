"""Real architectures, every entry door, every policy: the offloaded output is the un-offloaded one, bit for bit."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.policies import EVERY, settings
from tests.zoo.case import ModelCase
from tests.zoo.models import MODELS

CASES = MODELS


@functools.cache
def built(name: str) -> nn.Module:
    return CASES[name].build().eval()


@functools.cache
def expected(name: str, call: str, device: torch.device) -> list[torch.Tensor]:
    model = copy.deepcopy(built(name)).to(device)
    outputs = CASES[name].run(model, call, device)
    forget_caches(model)
    return outputs


@pytest.mark.parametrize("policy", EVERY)
@pytest.mark.parametrize("name", CASES)
def test_every_door_gives_the_unoffloaded_output(name: str, policy: str, device: torch.device, meter: Meter) -> None:
    case: ModelCase = CASES[name]
    # Tiling and slicing touch no other weights; one policy with streams and one without see them.
    calls = [call for call in case.calls if call not in case.repeats or policy in ("block", "leaf-stream")]
    wanted = {call: expected(name, call, device) for call in calls}
    model = copy.deepcopy(built(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    meter.reset()
    chosen = settings(policy, model, device)
    dop.enable_group_offload(model, device, **chosen)
    for turn in range(2):  # the second pass prefetches
        for call in calls:
            outputs = case.run(model, call, device)
            assert len(outputs) == len(wanted[call])
            for got, want in zip(outputs, wanted[call], strict=True):
                assert torch.equal(got, want), f"{call}, pass {turn}: differs by {(got - want).abs().max()}"
    report = dop.offload_report(model).components[0]
    assert report.transferred_bytes > 0
    # A budget with room for the whole model keeps all of it, alignment included: then the budget is the bound.
    if policy in ("whole", "auto"):
        assert report.budget_bytes is not None
        assert report.peak_device_bytes <= report.budget_bytes
    else:
        assert report.peak_device_bytes < size
    assert report.peak_device_bytes <= report.device_bound + sum_of_served(report, model)
    dop.disable_group_offload(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and after[key].device.type == "cpu" for key in before)
    forget_caches(model)


def forget_caches(model: nn.Module) -> None:
    """Empty ``functools`` caches on methods: they keep the model and its device tensors alive, offloaded or not."""
    for kind in {type(module) for module in model.modules()}:
        for member in vars(kind).values():
            cells = [cell.cell_contents for cell in getattr(member, "__closure__", None) or ()]
            for cached in (member, *cells):
                clear = getattr(cached, "cache_clear", None)
                if clear is not None:
                    clear()


def sum_of_served(report: object, model: nn.Module) -> int:
    """What modules that read others' weights may add to the bound; 0 where the report lists no such read."""
    decisions = getattr(report, "decisions", ())
    served = [d.name for d in decisions if "without a call of its owner" in d.reason]
    return sum(p.numel() * p.element_size() for p in model.parameters()) if served else 0
