"""Writes between two passes through whatever was taken from the model before, and the references that tell of them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.groups.param_group import GroupState
from diffusers_offload_plus.offload.model.tensors import plain_tensors
from tests.support.meter import Meter
from tests.support.models import Stack, assert_same, noise, seeded
from tests.support.policies import settings
from tests.support.virtual import engine_of
from tests.twin.modules import WIDTH, Counting, Dense, Model, Scale
from tests.zoo.quantized import QUANTISERS

Writer = Callable[[float], object]
Taken = dict[str, Writer]


Slot = dict[str, Any]


def slots(model: nn.Module, look: Callable[[Slot, str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every parameter, taken out of the dictionary that its module has."""
    return {
        f"{path}.{name}".lstrip("."): look(module._parameters, name)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }


def through(tensors: Callable[[nn.Module], dict[str, torch.Tensor]]) -> Callable[[nn.Module], Taken]:
    """Take tensors, and write them later without a trace."""

    def take(model: nn.Module) -> Taken:
        found = {name: t for name, t in tensors(model).items() if t.is_floating_point()}
        return {name: lambda factor, t=t: t.data.mul_(factor) for name, t in found.items()}

    return take


def weakly(model: nn.Module) -> Taken:
    """What was not kept alive is looked up again through weak references."""
    found: dict[str, Any] = {name: weakref.ref(p) for name, p in model.named_parameters()}
    return {name: lambda factor, r=r: r().data.mul_(factor) for name, r in found.items()}


def storages(model: nn.Module) -> Taken:
    found = {name: (p.untyped_storage(), p.dtype, p.shape) for name, p in model.named_parameters()}

    def write(factor: float, storage: Any, dtype: torch.dtype, shape: torch.Size) -> None:
        torch.empty(0, dtype=dtype, device=storage.device).set_(storage, 0, shape).mul_(factor)

    return {name: lambda factor, f=f: write(factor, *f) for name, f in found.items()}


def arrays(model: nn.Module) -> Taken:
    found = {name: p.detach().numpy() for name, p in model.named_parameters() if p.device.type == "cpu"}

    def write(factor: float, array: Any) -> None:
        array *= factor

    return {name: lambda factor, a=a: write(factor, a) for name, a in found.items()}


TAKEN: dict[str, Callable[[nn.Module], Taken]] = {
    "parameters": through(lambda m: dict(m.named_parameters())),
    "buffers": through(lambda m: dict(m.named_buffers())),
    "state dict": through(lambda m: m.state_dict()),
    "data": through(lambda m: {name: p.data for name, p in m.named_parameters()}),
    "views": through(lambda m: {name: p.detach().view(-1) for name, p in m.named_parameters()}),
    "get": through(lambda m: slots(m, lambda slot, name: slot.get(name))),
    "dictionaries": through(lambda m: slots(m, lambda slot, name: dict(slot)[name])),
    "copies": through(lambda m: slots(m, lambda slot, name: slot.copy()[name])),
    "unions": through(lambda m: slots(m, lambda slot, name: (slot | {})[name])),
    "weak references": weakly,
    "storages": storages,
    "arrays": arrays,
}


def build() -> Model:
    def make() -> Model:
        blocks: list[nn.Module] = [Dense(), Counting(), Dense(), Scale(), Dense(), Counting(), Dense(), Dense()]
        return Model(blocks, [Dense(), Dense()])

    model = seeded(make)
    assert isinstance(model, Model)
    return model


@pytest.mark.parametrize("when", ["before the first pass", "between passes"])
@pytest.mark.parametrize("how", TAKEN)
@pytest.mark.parametrize("policy", ["block", "leaf-stream", "tight", "half", "whole", "auto", "disk"])
def test_writes_through_what_was_taken_earlier(
    policy: str, how: str, when: str, device: torch.device, meter: Meter
) -> None:
    model = build()
    twin = copy.deepcopy(model).to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    x = noise(device, 3, WIDTH)
    with torch.inference_mode():
        taken = TAKEN[how](model) if when == "before the first pass" else None
        for _ in range(3):
            assert_same(model(x), twin(x))
    if taken is None:
        taken = TAKEN[how](model)
    mine, theirs = taken, TAKEN["state dict"](twin)
    assert len(mine) >= (5 if how == "buffers" else 30)
    for number, factor in enumerate((0.5, 0.75, 1.25)):
        for place, name in enumerate(mine):
            if place % 3 != number:  # some are not written
                mine[name](factor)
                theirs[name](factor)
        for _ in range(3):
            with torch.no_grad():
                assert_same(model(x), twin(x))
    del mine, taken
    for _ in range(2):
        with torch.no_grad():
            assert_same(model(x), twin(x))
    dop.disable_group_offload(model)
    assert_same(list(model.state_dict().values()), list(twin.state_dict().values()))


@pytest.mark.parametrize("policy", ["half", "tight"])
def test_what_is_held_while_a_pass_runs(policy: str, device: torch.device, meter: Meter) -> None:
    """A hook keeps parameters that it saw on the device, and writes them later."""
    model = seeded(lambda: Stack(depth=8))
    twin = copy.deepcopy(model).to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    x = noise(device)
    for number in range(8):
        seen: list[list[nn.Parameter]] = [[], []]
        for one, parameters in zip((model, twin), seen, strict=True):
            handle = one.blocks[number].up.register_forward_hook(
                lambda module, args, output, parameters=parameters: parameters.append(module.weight)
            )
            with torch.no_grad():
                one(x)
            handle.remove()
        for parameters in seen:
            parameters[0].data.mul_(0.5)
        del parameters
        seen.clear()
        for _ in range(3):
            with torch.no_grad():
                assert_same(model(x), twin(x))


KINDS = {"plain": lambda model: model, **QUANTISERS}


def layers() -> nn.Module:
    return seeded(lambda: nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)) for _ in range(8))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["tight", "half"])
def test_what_nobody_holds_is_copied_into_the_next_pass(
    policy: str, kind: str, device: torch.device, meter: Meter
) -> None:
    """And what somebody holds is not: neither a parameter, nor a weak reference, nor an inner tensor of one."""
    model = layers()
    KINDS[kind](model)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    engine, x = engine_of(model), noise(device, 2, 64)

    def ahead() -> set[int]:
        with torch.no_grad():
            for _ in range(3):
                model(x)
        resting = [group for group in engine.streamed if group.state is GroupState.PREFETCHED]
        assert not any(group.cached for group in resting)
        return {group.number for group in resting}

    free = ahead()
    assert free, "nothing was copied ahead"
    assert not any(engine.forward_pass.prefetcher._may_be_written(group) for group in engine.groups)
    first = min(free)
    holders: dict[str, Callable[[torch.Tensor], object]] = {
        "strong": lambda weight: [weight], "weak": weakref.ref, "data": lambda weight: weight.data,
    }  # fmt: skip
    if kind != "plain":
        holders["inner"] = lambda weight: next(plain_tensors(weight))[1]
        holders["inner data"] = lambda weight: next(plain_tensors(weight))[1].data
    for name, hold in holders.items():
        held = hold(engine.groups[first].spec.entries[0].tensor)
        assert first not in ahead(), name
        del held
        assert ahead() == free, name


def test_copies_go_on_from_one_step_into_the_next(device: torch.device, meter: Meter) -> None:
    """Nothing waits at the end of a step; a read of such a weight takes its copy back."""
    model: Any = seeded(lambda: Stack(depth=8))
    dop.enable_group_offload(model, device, **settings("tight", model, device))
    engine, x = engine_of(model), noise(device)
    with torch.no_grad():
        for _ in range(4):
            model(x)
    resting = [group for group in engine.streamed if group.state is GroupState.PREFETCHED]
    assert resting
    name = resting[0].spec.entries[0].names[0]
    model.get_parameter(name)
    assert resting[0].state is GroupState.OFFLOADED
    assert {group.state for group in resting[1:]} <= {GroupState.PREFETCHED}
    model.state_dict()
    assert {group.state for group in resting} == {GroupState.OFFLOADED}
