"""Side by side with accelerate's hooks and diffusers' own: in either order, and taken away again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus import HookConflictError
from diffusers_offload_plus.offload.hook import attachment_of
from tests.meter import Meter
from tests.policies import POLICIES
from tests.zoo.models import MODELS

CHOSEN = ["block", "block-2-stream", "leaf-stream", "leaf-lean"]
CASE = MODELS["flux"]


def flux() -> nn.Module:
    return CASE.build().eval()


def unoffloaded(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    return CASE.run(copy.deepcopy(model).to(device), "forward", device)


def assert_right(model: nn.Module, want: list[torch.Tensor], device: torch.device) -> None:
    for _ in range(2):
        assert torch.equal(CASE.run(model, "forward", device)[0], want[0])


@pytest.mark.parametrize("policy", CHOSEN)
def test_a_hook_of_accelerate_before_ours_removed_again(policy: str, device: torch.device, meter: Meter) -> None:
    model = flux()
    want = unoffloaded(model, device)
    add_hook_to_module(model, ModelHook())
    dop.enable_group_offload(model, device, **POLICIES[policy])
    assert_right(model, want, device)
    remove_hook_from_module(model)  # puts the forward back that was there before ours
    assert_right(model, want, device)
    attachment = attachment_of(model)
    assert attachment is not None
    hook = attachment.hook_on(model)
    assert hook is not None
    assert hook.fires(), "the displaced hook was not put back"


@pytest.mark.parametrize("policy", CHOSEN)
def test_a_hook_of_accelerate_after_ours_removed_again(policy: str, device: torch.device, meter: Meter) -> None:
    model = flux()
    want = unoffloaded(model, device)
    dop.enable_group_offload(model, device, **POLICIES[policy])
    add_hook_to_module(model, ModelHook())
    assert_right(model, want, device)
    remove_hook_from_module(model)
    assert_right(model, want, device)
    dop.disable_group_offload(model)
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("order", ["before", "after"])
def test_components_manager(order: str, device: torch.device) -> None:
    from diffusers import ComponentsManager

    model = flux()
    want = unoffloaded(model, device)
    manager = ComponentsManager()
    manager.add("transformer", model)
    if order == "after":
        dop.enable_group_offload(manager, device, offload_type="leaf_level", use_stream=True)
    manager.enable_auto_cpu_offload(device=device)
    if order == "before":
        dop.enable_group_offload(manager, device, offload_type="leaf_level", use_stream=True)
    assert_right(model, want, device)
    manager.disable_auto_cpu_offload()
    assert_right(model, want, device)
    report = dop.offload_report(model).components[0]
    assert 0 < report.peak_device_bytes < report.streamed_bytes / 4
    dop.disable_group_offload(model)


@pytest.mark.parametrize("hook", [AlignDevicesHook, CpuOffload])
def test_offloading_by_accelerate_is_refused(hook: Any, device: torch.device) -> None:
    model = flux()
    add_hook_to_module(model.transformer_blocks[0], hook())
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(HookConflictError, match="remove_hook_from_module"):
        dop.enable_group_offload(model, device)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_layerwise_casting(policy: str, order: str, device: torch.device, meter: Meter) -> None:
    def cast(model: nn.Module) -> None:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    model = flux()
    plain = copy.deepcopy(model).to(device)
    cast(plain)
    want = CASE.run(plain, "forward", device)
    if order == "before":
        cast(model)
    dop.enable_group_offload(model, device, **POLICIES[policy])
    if order == "after":
        cast(model)
    assert_right(model, want, device)
    del plain


@pytest.mark.parametrize("order", ["before", "after"])
def test_first_block_cache(order: str, device: torch.device) -> None:
    from diffusers import FirstBlockCacheConfig

    def run(model: nn.Module) -> list[torch.Tensor]:
        outputs = []
        with torch.no_grad(), model.cache_context("cond"):
            for seed in (0, 0, 1):
                outputs += [output.cpu() for output in CASE.calls["forward"](model, device, seed)]
        return outputs

    model = flux()
    plain = copy.deepcopy(model).to(device)
    plain.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    want = run(plain)
    if order == "before":
        model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    dop.enable_group_offload(model, device, offload_type="block_level", use_stream=True)
    if order == "after":
        model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert all(map(torch.equal, run(model), want))
