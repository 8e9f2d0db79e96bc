"""Steps of an optimizer: inside of backward, and with gradients that were made inside or outside of ``onloaded``."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import BUDGETED, Stack, assert_same, noise, seeded
from tests.support.policies import settings

pytestmark = pytest.mark.usefixtures("meter")
every_policy = pytest.mark.parametrize("policy", BUDGETED)


def arm(model: nn.Module, handles: list[Any], *, held: bool) -> None:
    """As torch's tutorial does: each parameter steps as soon as its gradient is there, which is freed at once."""
    optimizers = {p: torch.optim.AdamW([p], lr=0.01) for p in model.parameters()}

    def step(parameter: nn.Parameter) -> None:
        optimizer = optimizers[parameter] if held else torch.optim.SGD([parameter], lr=0.01)
        optimizer.step()
        optimizer.zero_grad()

    handles += [parameter.register_post_accumulate_grad_hook(step) for parameter in model.parameters()]


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("armed", ["before enabling", "before the first forward", "after a forward"])
@every_policy
def test_optimizer_in_backward(policy: str, armed: str, held: bool, device: torch.device) -> None:
    model = seeded(lambda: Stack(depth=6)).train()
    twin = copy.deepcopy(model).to(device)
    handles: list[Any] = []
    arm(twin, handles, held=held)
    if armed == "before enabling":
        arm(model, handles, held=held)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    if armed == "before the first forward":
        arm(model, handles, held=held)
    for step in range(4):
        x = noise(device, seed=step)
        if step == 0 and armed == "after a forward":
            model(x)
            arm(model, handles, held=held)
        for one in (model, twin):
            one(x).square().mean().backward()
        assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert_same(model(x), twin(x))
    dop.disable_group_offload(model)
    assert_same([p.detach() for p in model.parameters()], [p.detach() for p in twin.parameters()])
    for handle in handles:  # what they refer to is not seen by the garbage collector
        handle.remove()


@pytest.mark.parametrize("inside", ["first", "second", "both", "step", "second and step", "all"])
@every_policy
def test_gradients_accumulate_inside_and_outside_of_onloaded(
    policy: str, inside: str, device: torch.device, meter: Meter
) -> None:
    model = seeded(lambda: Stack(depth=4)).train()
    twin = copy.deepcopy(model).to(device)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.01) for one in (model, twin)]
    dop.enable_group_offload(model, device, **settings(policy, model, device) | large(policy, model))
    for number in range(2):
        for place, what in enumerate(("first", "second", "step")):
            is_inside = inside == "all" or what in inside or (inside == "both" and what != "step")
            with dop.onloaded(model) if is_inside else contextlib.nullcontext():
                if what != "step":
                    for one in (model, twin):
                        one(noise(device, seed=2 * number + place)).square().mean().backward()
                else:
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
            assert {p.device.type for p in model.parameters()} == {"cpu"}
            assert {p.grad.device.type for p in model.parameters() if p.grad is not None} <= {"cpu"}
            if what != "step":
                assert_same([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
    with torch.no_grad():
        assert_same(model(noise(device)), twin(noise(device)))
    dop.disable_group_offload(model)


def large(policy: str, model: nn.Module) -> dict[str, Any]:
    """A budget that has room for the whole model at once, as ``onloaded`` needs."""
    return {"vram_budget": 4 * sum(p.nbytes for p in model.parameters())} if policy in ("half", "auto") else {}


def test_a_parameter_that_has_the_id_of_a_dead_one(device: torch.device) -> None:
    """What is remembered of a parameter ends with it: gradients of its successor are brought to the host as well."""
    model: Any = seeded(lambda: Stack(depth=2)).train()
    dop.enable_group_offload(model, device)
    seen: set[int] = set()
    met = 0
    for number in range(60):
        weight = nn.Parameter(torch.randn_like(model.blocks[1].up.weight.detach()))
        met += id(weight) in seen
        seen.add(id(weight))
        model.blocks[1].up.weight = weight
        model(noise(device, seed=number)).sum().backward()
        assert weight.grad is not None
        assert weight.grad.device.type == "cpu"
        model.zero_grad()
        del weight
    assert met, "no id was used twice"
