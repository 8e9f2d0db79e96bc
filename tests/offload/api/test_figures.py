"""Byte-exact figures of one pass over a tiny Flux, beside stock diffusers in the same run."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.stores.layout import ALIGNMENT
from tests.support.meter import Meter
from tests.zoo.models import MODELS
from tests.zoo.quantized import QUANTISERS

MODES = {
    "block": {"offload_type": "block_level", "num_blocks_per_group": 1},
    "block-stream": {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": True},
    "leaf": {"offload_type": "leaf_level"},
    "leaf-stream": {"offload_type": "leaf_level", "use_stream": True},
}
PAGE = 4096


class Figures(NamedTuple):
    """What one steady pass did."""

    copies: int
    h2d: int
    d2h: int
    peak: int
    pinned: int


@functools.cache
def built(weights: str) -> nn.Module:
    model = MODELS["flux"].build().eval()
    if weights != "float32":
        QUANTISERS[weights](model)
    return model


def steady_pass(
    weights: str, enable: Callable[[nn.Module], None], device: torch.device, meter: Meter
) -> tuple[Figures, nn.Module]:
    model = copy.deepcopy(built(weights))
    gc.collect()
    pinned = meter.pinned
    enable(model)
    for _ in range(2):
        MODELS["flux"].run(model, "forward", device)
    meter.reset()
    MODELS["flux"].run(model, "forward", device)
    return Figures(meter.copies, meter.h2d, meter.d2h, meter.peak, meter.pinned - pinned), model


def moved_without_weights(weights: str, device: torch.device, meter: Meter) -> Figures:
    """What the same pass moves when nothing is offloaded: inputs and outputs."""
    model = copy.deepcopy(built(weights)).to(device)
    MODELS["flux"].run(model, "forward", device)
    meter.reset()
    MODELS["flux"].run(model, "forward", device)
    return Figures(meter.copies, meter.h2d, meter.d2h, meter.peak, 0)


def ours(device: torch.device, **settings: Any) -> Callable[[nn.Module], None]:
    return lambda model: dop.enable_group_offload(model, device, **settings)


def stock(device: torch.device, **settings: Any) -> Callable[[nn.Module], None]:
    return lambda model: apply_group_offloading(model, device, **settings)


@pytest.mark.parametrize("weights", ["float32", "int8_weight_only"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pass_moves_each_group_once_and_nothing_back(
    mode: str, weights: str, device: torch.device, meter: Meter
) -> None:
    plain = moved_without_weights(weights, device, meter)
    mine, model = steady_pass(weights, ours(device, **MODES[mode]), device, meter)
    theirs, other = steady_pass(weights, stock(device, **MODES[mode]), device, meter)
    report = dop.offload_report(model).components[0]
    if not meter.exact:
        return
    inputs = 64  # a pass may move a few inputs of its own: at most this many copies
    assert mine.d2h == plain.d2h, "weights travelled device to host"
    assert mine.h2d - plain.h2d == report.streamed_bytes
    assert mine.copies - plain.copies <= report.groups
    assert theirs.copies - plain.copies > 1.5 * report.groups
    assert theirs.copies > mine.copies + inputs
    tensors = sum(1 for _ in built(weights).state_dict())
    allowance = report_allowance(weights, tensors)
    largest = max(group.nbytes for group in plan_of(model).groups)
    spare = largest if mode.startswith("leaf") else 0
    assert mine.peak <= theirs.peak + spare + allowance
    del other


@pytest.mark.parametrize("weights", ["float32", "int8_weight_only"])
@pytest.mark.parametrize("mode", ["block-stream", "leaf-stream"])
def test_pinned_memory_is_the_model_and_no_more(mode: str, weights: str, device: torch.device, meter: Meter) -> None:
    mine, model = steady_pass(weights, ours(device, **MODES[mode]), device, meter)
    size = weight_bytes(built(weights))
    tensors = sum(1 for _ in model.parameters()) * (1 if weights == "float32" else 3)
    if meter.exact:
        assert size <= mine.pinned <= 1.02 * size + ALIGNMENT * tensors + PAGE


def test_setting_up_never_holds_a_second_copy_of_the_model(
    device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers_offload_plus.offload.stores import host

    model = copy.deepcopy(built("float32"))
    size = weight_bytes(model)
    held: list[int] = []
    original = host.HostSlab.__init__

    def measured(self: host.HostSlab, *args: Any) -> None:
        original(self, *args)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.parameters()}
        held.append(sum(storages.values()) + self.nbytes)

    monkeypatch.setattr(host.HostSlab, "__init__", measured)
    dop.enable_group_offload(model, device, offload_type="block_level", use_stream=True)
    largest = max(group.nbytes for group in plan_of(model).groups)
    assert len(held) > 5
    assert max(held) <= size + largest + ALIGNMENT * 200


@pytest.mark.parametrize("mode", MODES)
def test_the_plan_follows_a_cast(mode: str, device: torch.device) -> None:
    """It is that of a model that was cast before."""
    model = copy.deepcopy(built("float32"))
    dop.enable_group_offload(model, device, **MODES[mode])
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        model.to(dtype)
        MODELS["flux"].run(model, "forward", device)
        fresh = copy.deepcopy(built("float32")).to(dtype)
        dop.enable_group_offload(fresh, device, **MODES[mode])
        MODELS["flux"].run(fresh, "forward", device)
        mine, theirs = plan_of(model), plan_of(fresh)
        assert (mine.device_bound, mine.streamed_bytes) == (theirs.device_bound, theirs.streamed_bytes)
        assert [group.nbytes for group in mine.groups] == [group.nbytes for group in theirs.groups]
        padded = [-(-parameter.numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT for parameter in model.parameters()]
        assert sum(group.nbytes for group in mine.groups) == sum(padded)


def plan_of(model: nn.Module) -> Any:
    from diffusers_offload_plus.offload.hooks.attachment import attachment_of

    attachment = attachment_of(model)
    assert attachment is not None
    return attachment.engine.plan


def weight_bytes(model: nn.Module) -> int:
    from diffusers_offload_plus.offload.model.tensors import plain_tensors

    return sum(t.numel() * t.element_size() for p in model.parameters() for _, t in plain_tensors(p))


def report_allowance(weights: str, tensors: int) -> int:
    return ALIGNMENT * tensors * (1 if weights == "float32" else 3)
