"""Parameters that are wrappers of wrappers are offloaded like any other, and stay the objects they were."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.model.tensors import is_wrapper, map_plain, plain_tensors, repoint, same_bits
from tests.support.meter import Meter
from tests.support.models import BUDGETED, CHOSEN, WIDTH, Block, Pair, Stack, assert_same, noise, seeded
from tests.support.policies import settings
from tests.support.subclasses import Boxed, box, box_linears, boxed_parameters, leaves

every_policy = pytest.mark.parametrize("policy", CHOSEN)
pytestmark = pytest.mark.usefixtures("meter")


def boxed_stack() -> nn.Module:
    return box_linears(seeded(Stack))


def places(parameter: torch.Tensor) -> set[str]:
    """The device types that a parameter and all inside it claim to be on."""
    inner = [parameter.core] if isinstance(parameter, Boxed) else []
    return {t.device.type for t in (parameter, *inner, *leaves(parameter))}


# The protocol alone


def test_a_box_of_a_box_stands_for_its_values() -> None:
    values = torch.randn(4, 6)
    assert torch.equal(box(values, shift=False).values(), values)
    torch.testing.assert_close(box(values).values(), values)
    assert len(list(leaves(box(values)))) == 2


@pytest.mark.parametrize("shift", [True, False])
def test_plain_tensors_are_found_by_path(shift: bool) -> None:
    tensor = box(torch.randn(3, 5), shift=shift)
    assert is_wrapper(tensor)
    assert not is_wrapper(nn.Parameter(torch.ones(2)))
    assert [path for path, _ in plain_tensors(tensor)] == (["core.core", "shift"] if shift else ["core.core"])
    assert [id(t) for _, t in plain_tensors(tensor)] == [id(t) for t in leaves(tensor)]


def test_mapping_leaves_the_source_as_it_was() -> None:
    tensor = box(torch.randn(3, 5))
    inner = list(leaves(tensor))
    doubled = map_plain(tensor, lambda t: t * 2)
    assert all(a is b for a, b in zip(leaves(tensor), inner, strict=True))
    torch.testing.assert_close(doubled.values(), tensor.values() * 2)
    assert (doubled.factor, doubled.core.factor) == (4.0, 2.0)


def test_repointing_keeps_the_parameter_and_takes_the_inner_tensors(device: torch.device) -> None:
    parameter = nn.Parameter(box(torch.randn(3, 5)), requires_grad=False)
    watched = weakref.ref(parameter)
    host = map_plain(parameter, lambda t: t)
    there = map_plain(parameter, lambda t: t.to(device))
    for _ in range(3):
        repoint(parameter, there)
        assert places(parameter) == {device.type}
        assert all(a is b for a, b in zip(leaves(parameter), leaves(there), strict=True))
        repoint(parameter, host)
        assert places(parameter) == {"cpu"}
        assert all(a is b for a, b in zip(leaves(parameter), leaves(host), strict=True))
    assert watched() is parameter


def test_same_bits_looks_inside() -> None:
    tensor = box(torch.randn(3, 5))
    assert same_bits(tensor, tensor.clone())
    assert not same_bits(tensor, box(tensor.values(), shift=False))
    other = tensor.clone()
    other.core.core[1, 1] += 1
    assert not same_bits(tensor, other)
    minus = map_plain(tensor, torch.zeros_like)
    assert not same_bits(minus, map_plain(minus, torch.neg)), "-0.0 is not 0.0"


# Whole models


@every_policy
def test_offloaded_is_the_unoffloaded_one(policy: str, device: torch.device) -> None:
    pair = Pair(boxed_stack(), device, policy)
    pair.agree(lambda m: m(noise(device)), passes=3)
    pair.same_state(on_host=True)
    pair.finish()


@every_policy
def test_identity_of_parameters_and_of_host_tensors(policy: str, device: torch.device) -> None:
    model = boxed_stack()
    before = {name: id(p) for name, p in model.named_parameters()}
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    at_rest = {name: list(leaves(p)) for name, p in boxed_parameters(model).items()}
    seen: list[set[str]] = []
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        layer.register_forward_hook(lambda m, *_: seen.append(places(m.weight)))
    for _ in range(3):
        model(noise(device))
        assert {name: id(p) for name, p in model.named_parameters()} == before
        for name, parameter in boxed_parameters(model).items():
            assert places(parameter) == {"cpu"}, name
            assert all(a is b for a, b in zip(leaves(parameter), at_rest[name], strict=True)), name
    assert seen == [{device.type}] * (3 * 14)
    dop.disable_group_offload(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before


@every_policy
def test_weak_references_do_no_harm(policy: str, device: torch.device) -> None:
    model = boxed_stack()
    inner = [t for p in boxed_parameters(model).values() for t in (p.core, *leaves(p))]
    references = [weakref.ref(t) for t in (*model.parameters(), *inner)]
    by_parameter = WeakIdKeyDictionary({p: name for name, p in model.named_parameters()})
    pair = Pair(model, device, policy)
    references += [weakref.ref(t) for p in boxed_parameters(model).values() for t in leaves(p)]
    pair.agree(lambda m: m(noise(device)))
    assert {name: by_parameter[p] for name, p in model.named_parameters()} == {
        n: n for n, _ in model.named_parameters()
    }
    assert all(reference() is not None for reference in references[: len(list(model.parameters()))])
    pair.finish()


@every_policy
def test_no_weight_travels_back(policy: str, device: torch.device, meter: Meter) -> None:
    model = boxed_stack()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    x = noise(device)
    with torch.no_grad():
        for _ in range(3):
            before = meter.d2h
            model(x)
            assert meter.d2h == before
    assert dop.offload_report(model).components[0].written_back_bytes == 0


@every_policy
def test_bytes_of_inner_tensors_are_counted(policy: str, device: torch.device) -> None:
    model = boxed_stack()
    total = sum(t.numel() * t.element_size() for p in model.parameters() for t in leaves(p))
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    model(noise(device))
    report = dop.offload_report(model).components[0]
    assert total <= report.streamed_bytes + report.resident_bytes < 1.2 * total
    assert report.peak_device_bytes <= report.device_bound < total


@pytest.mark.parametrize("policy", BUDGETED)
def test_an_inner_tensor_that_somebody_holds_keeps_its_memory(policy: str, device: torch.device) -> None:
    class Giving(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            weight: Any = self.up.weight
            return weight.core.core

    model: Any = box_linears(seeded(lambda: Stack(block=Giving)))
    want = [block.up.weight.core.core.clone() for block in model.blocks]
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for _ in range(2):
        with torch.no_grad():
            held = [block(noise(device)) for block in model.blocks]
        assert all(tensor.untyped_storage().nbytes() for tensor in held), "reading it would crash"
        assert_same(held, want)
        del held
    dop.disable_group_offload(model)


# What users do to them


@torch.no_grad()
def write_inner(m: Any) -> None:
    m.blocks[2].up.weight.core.core.mul_(1.5)
    m.inlet.weight.shift.add_(1.0)


def reassign_inner(m: Any) -> None:
    m.blocks[2].up.weight.core.core = torch.ones_like(m.blocks[2].up.weight.core.core)
    m.blocks[1].down.weight.core = Boxed(m.blocks[1].down.weight.core.core * 2, None, 2.0)


def assign_data(m: Any) -> None:
    repoint(
        m.blocks[3].up.weight, box(torch.full((2 * WIDTH, WIDTH), 0.01), shift=m.blocks[3].up.weight.shift is not None)
    )


def replace_with_shift(m: Any) -> None:
    for shift in (False, True):
        m.blocks[int(shift)].up.weight = nn.Parameter(
            box(torch.full((2 * WIDTH, WIDTH), 0.02), shift=shift), requires_grad=False
        )


def replace_by_plain(m: Any) -> None:
    m.blocks[4].up.weight = nn.Parameter(m.blocks[4].up.weight.values() * 2)


def box_another(m: Any) -> None:
    m.blocks[4].norm.weight = nn.Parameter(box(m.blocks[4].norm.weight.detach() * 2), requires_grad=False)


def drop_shift(m: Any) -> None:
    m.inlet.weight.shift = None


def gain_shift(m: Any) -> None:
    m.blocks[0].up.weight.shift = torch.full((2 * WIDTH, WIDTH), 0.5)


CHANGES = [
    write_inner,
    reassign_inner,
    assign_data,
    replace_with_shift,
    replace_by_plain,
    box_another,
    drop_shift,
    gain_shift,
]


@pytest.mark.parametrize("change", CHANGES)
@every_policy
def test_change_between_passes(policy: str, change: Callable[[Any], None], device: torch.device) -> None:
    pair = Pair(boxed_stack(), device, policy)
    pair.agree(lambda m: m(noise(device)))
    before = pair.plain(noise(device))
    pair.change(change)
    assert not torch.equal(before, pair.plain(noise(device))), "the change was meant to matter"
    pair.agree(lambda m: m(noise(device)))
    pair.finish(tidy=False)


@every_policy
def test_write_inside_onloaded_is_kept(policy: str, device: torch.device) -> None:
    pair = Pair(boxed_stack(), device, policy)
    pair.agree(lambda m: m(noise(device)))
    with dop.onloaded(pair.model):
        pair.change(write_inner)
        assert places(pair.model.inlet.weight) == {device.type}
    pair.agree(lambda m: m(noise(device)))
    pair.finish(saves=False)


@every_policy
def test_forward_reads_a_box_of_a_module_it_does_not_call(policy: str, device: torch.device) -> None:
    class Reader(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(super().forward(x), self.blocks[2].down.weight.t())

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.blocks[2].up.weight, self.blocks[2].up.bias)

    pair = Pair(box_linears(seeded(Reader)), device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.agree(lambda m: m.encode(noise(device)))
    pair.finish(saves=False)


@every_policy
def test_inner_tensors_shared_between_boxes_move_once(policy: str, device: torch.device) -> None:
    def tie(model: Any) -> None:
        shared = model.blocks[0].up.weight.core
        for block in model.blocks[1:4]:
            block.up.weight.core = shared
        model.blocks[5].up.weight = model.blocks[4].up.weight

    model = boxed_stack()
    tie(model)
    plain = copy.deepcopy(model)
    tie(plain)
    pair = Pair(model, device, policy, plain)
    pair.agree(lambda m: m(noise(device)))
    memory = {model.blocks[number].up.weight.core.core.data_ptr() for number in range(4)}
    assert len(memory) == 1, "still one memory"
    assert any("shared by" in decision.reason for decision in pair.component().decisions)
    pair.finish()
    assert model.blocks[5].up.weight is model.blocks[4].up.weight


@every_policy
def test_boxes_as_buffers(policy: str, device: torch.device) -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("offset", box(torch.randn(WIDTH)))
            self.register_buffer("hidden", box(torch.randn(WIDTH), shift=False), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.offset * self.hidden

    pair = Pair(seeded(lambda: Stack(block=Biased)), device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


@every_policy
def test_copies_and_state_of_an_offloaded_model(policy: str, device: torch.device) -> None:
    model = boxed_stack()
    x = noise(device)
    want = copy.deepcopy(model).to(device)(x)
    weights = {name: [t.clone() for t in leaves(p)] for name, p in boxed_parameters(model).items()}
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    model(x)
    twin = copy.deepcopy(model).to(device)
    assert_same(twin(x), want)
    state = model.state_dict()
    for name, inner in weights.items():
        assert all(torch.equal(a, b) for a, b in zip(leaves(state[name]), inner, strict=True)), name
    fresh = boxed_stack()
    fresh.load_state_dict(state, assign=True)
    assert_same(fresh.to(device)(x), want)
    assert_same(model(x), want)
    dop.disable_group_offload(model)
