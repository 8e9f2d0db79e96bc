"""What we rely on of diffusers, accelerate and torch beyond their public interfaces, pinned name by name."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import sys
from typing import ClassVar

import diffusers.hooks.group_offloading as stock
import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus import ContractError
from diffusers_offload_plus.offload.hooks.diffusers_api import (
    HOOK_NAME,
    STOCK_HELPER_HOOKS,
    stock_config,
    stock_hooks,
    stock_settings,
)
from tests.support.models import Stack, noise, seeded
from tests.support.policies import settings


class Recording(ModelHook):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def new_forward(self, module: nn.Module, *args: object) -> object:
        self.events.append("forward")
        return self.fn_ref.original_forward(*args)

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:
        self.events.append("removed")
        return module


def test_the_registry_wraps_forward_on_the_instance_and_gives_it_back() -> None:
    module, hook = nn.Linear(2, 2), Recording()
    registry = HookRegistry.check_if_exists_or_initialize(module)
    assert module._diffusers_hook is registry
    registry.register_hook(hook, "ours")
    assert registry.get_hook("ours") is hook
    assert module.__dict__["forward"].__wrapped__.__func__ is nn.Linear.forward
    module(torch.ones(1, 2))
    registry.remove_hook("ours", recurse=False)
    assert hook.events == ["forward", "removed"]
    assert registry.hooks == {}


def test_the_name_diffusers_looks_for() -> None:
    assert HOOK_NAME == "group_offloading"
    module = nn.Linear(2, 2)
    assert not stock._is_group_offload_enabled(module)
    dop.enable_group_offload(module, "cpu")
    assert stock._is_group_offload_enabled(module)
    assert stock._get_group_onload_device(module) == torch.device("cpu")


def test_reapplication_removes_the_hooks_then_reads_the_config_then_looks_again() -> None:
    source = inspect.getsource(stock._maybe_remove_and_reapply_group_offloading)
    remove, config = source.index("remove_hook(_GROUP_OFFLOADING"), source.index("hook.config")
    assert remove < config
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    dop.enable_group_offload(model, "cpu", offload_type="leaf_level")
    hooks = [
        module._diffusers_hook.get_hook(HOOK_NAME) for module in model.modules() if hasattr(module, "_diffusers_hook")
    ]
    for _ in range(4):
        stock._maybe_remove_and_reapply_group_offloading(model)
        now = [m._diffusers_hook.get_hook(HOOK_NAME) for m in model.modules() if hasattr(m, "_diffusers_hook")]
        assert len(now) == len(hooks)
        assert not any(isinstance(hook, stock.GroupOffloadingHook) for hook in now)
        assert depth(model) == 1


def depth(module: nn.Module) -> int:
    """How many wrappers lie over the class's own forward."""
    count, forward = 0, module.__dict__.get("forward")
    while hasattr(forward, "__wrapped__"):
        count, forward = count + 1, forward.__wrapped__
    return count


def test_accelerate_keeps_the_forward_it_replaced() -> None:
    module = nn.Linear(2, 2)
    module.forward = mine = lambda x: x
    add_hook_to_module(module, AccelerateHook())
    assert module._old_forward is mine
    assert module.forward.__wrapped__ is mine
    remove_hook_from_module(module)
    assert module.forward is mine


def test_attribute_lookup_goes_through_the_dictionary_of_the_instance() -> None:
    class Watched(dict):  # type: ignore[type-arg]
        seen: ClassVar[list[str]] = []

        def __getitem__(self, name: str) -> object:
            self.seen.append(name)
            return dict.__getitem__(self, name)

    module = nn.Linear(2, 2)
    module.__dict__["_parameters"] = Watched(module._parameters)
    module(torch.ones(1, 2))
    assert Watched.seen == ["weight", "bias"]


def test_copies_ask_the_instance_how_to_reduce_itself() -> None:
    module = nn.Linear(2, 2)
    module.__dict__["__reduce_ex__"] = lambda protocol: (nn.Identity, ())
    assert type(copy.deepcopy(module)) is nn.Identity


def test_private_names_of_torch() -> None:
    assert torch._C._current_graph_task_id() == -1
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert torch.autograd._profiler_enabled() is False
    assert nn.Linear(1, 1)._compiled_call_impl is None
    assert isinstance(torch.empty(1).untyped_storage()._cdata, int)


@pytest.mark.parametrize("name", ["GroupOffloadingHook", "GroupOffloadingConfig", "_GROUP_OFFLOADING"])
def test_a_name_that_is_gone_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    door = "diffusers_offload_plus.offload.hooks.diffusers_api"
    monkeypatch.delattr(stock, name)
    monkeypatch.delitem(sys.modules, door)
    with pytest.raises(ContractError, match=rf"{name}.*relies on"):
        importlib.import_module(door)


@pytest.mark.parametrize("name", ["get_hook", "remove_hook", "register_hook", "invalidate_child_registries_cache"])
def test_a_registry_without_a_method_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    door = "diffusers_offload_plus.offload.hooks.diffusers_api"
    monkeypatch.delattr(HookRegistry, name)
    monkeypatch.delitem(sys.modules, door)
    with pytest.raises(ContractError, match=rf"HookRegistry has no `{name}`"):
        importlib.import_module(door)


def test_a_setting_that_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    door = "diffusers_offload_plus.offload.hooks.diffusers_api"

    @dataclasses.dataclass
    class Fewer:
        onload_device: object

    monkeypatch.setattr(stock, "GroupOffloadingConfig", Fewer)
    monkeypatch.delitem(sys.modules, door)
    with pytest.raises(ContractError, match=r"Fewer` no longer takes offload_device, .*block_modules.*relies"):
        importlib.import_module(door)
    assert issubclass(ContractError, ImportError)


def test_block_level_reapplication_hooks_the_root_and_the_children_of_its_lists() -> None:
    """What makes the configuration we hand out harmless: wherever diffusers would add a hook there is one of ours."""
    model = nn.ModuleDict(
        {
            "list": nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)]),
            "sequence": nn.Sequential(nn.Linear(2, 2)),
            "nested": nn.ModuleDict({"list": nn.ModuleList([nn.Linear(2, 2)])}),
            "single": nn.Linear(2, 2),
        }
    )
    stock._apply_group_offloading(model, stock_config(torch.device("cpu"), torch.device("cpu")))
    hooked = {name for name, module in model.named_modules() if hasattr(module, "_diffusers_hook")}
    assert hooked <= {"", "list.0", "list.1", "sequence.0"}
    assert {name for name, _, _ in stock_hooks(model)} == hooked
    for _, _, hook in stock_hooks(model):
        settings = stock_settings(hook.config, model)
        assert settings["offload_type"] == "block_level"
        assert settings["num_blocks_per_group"] == 1
        assert settings["use_stream"] is False


def test_names_of_the_hooks_beside_the_stock_one() -> None:
    assert STOCK_HELPER_HOOKS == ("layer_execution_tracker", "lazy_prefetch_group_offloading")


def test_a_hook_removed_from_beneath_overwrites_the_forward_of_the_one_above() -> None:
    module, beneath, above = nn.Linear(2, 2), Recording(), Recording()
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(beneath, "beneath")
    registry.register_hook(above, "above")
    wrapped = above.fn_ref.forward
    assert isinstance(wrapped, functools.partial)
    registry.remove_hook("beneath", recurse=False)
    assert above.fn_ref.forward is not wrapped
    module(torch.ones(1, 2))
    assert above.events == []
    assert beneath.events == ["removed"]


def test_after_an_exception_diffusers_calls_no_post_forward() -> None:
    class Counting(ModelHook):
        ended = 0

        def post_forward(self, module: nn.Module, output: object) -> object:
            self.ended += 1
            return output

    module, hook = nn.Linear(2, 2), Counting()
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "counting")
    with pytest.raises(RuntimeError):
        module(torch.ones(1, 3))
    assert hook.ended == 0
    module(torch.ones(1, 2))
    assert hook.ended == 1


def test_compile_sets_the_call_on_the_instance_over_its_forward() -> None:
    module = nn.Linear(2, 2)
    module.compile(backend="eager")
    assert module.__dict__["_compiled_call_impl"] is not None
    module.__dict__["_compiled_call_impl"] = None
    assert torch.equal(module(torch.ones(1, 2)), nn.functional.linear(torch.ones(1, 2), module.weight, module.bias))


def test_storages_of_one_memory_have_one_identity() -> None:
    tensor = torch.arange(6.0)
    assert tensor[2:].untyped_storage()._cdata == tensor.untyped_storage()._cdata
    assert tensor.clone().untyped_storage()._cdata != tensor.untyped_storage()._cdata


def test_assigning_data_keeps_the_parameter_and_its_version() -> None:
    parameter = nn.Parameter(torch.ones(2))
    before = id(parameter), parameter._version
    parameter.data = torch.zeros(3)
    assert (id(parameter), parameter._version) == before
    with torch.no_grad():
        parameter.add_(1)
    assert parameter._version == before[1] + 1
    parameter.data.add_(1)
    assert parameter._version == before[1] + 1, "a write through data leaves no trace"


@pytest.mark.usefixtures("meter")
@pytest.mark.parametrize("policy", ["block-2-stream", "leaf-lean"])
def test_no_library_attribute_is_replaced(policy: str, device: torch.device) -> None:
    """Public and private attributes of modules and of their classes, before, during and after."""
    modules = [
        "accelerate.hooks", "diffusers.hooks", "diffusers.hooks.group_offloading", "diffusers.hooks.hooks",
        "diffusers.hooks.layerwise_casting", "diffusers.loaders.lora_base", "diffusers.loaders.peft",
        "diffusers.models.modeling_utils", "diffusers.modular_pipelines.components_manager",
        "diffusers.pipelines.pipeline_utils", "torch.nn.modules.module", "torch.nn.modules.linear",
        "torch.nn.parameter", "torch.autograd.graph", "torch._tensor", "torch.storage",
        "torchao.utils", "torchao.quantization",
    ]  # fmt: skip
    owners = [importlib.import_module(name) for name in modules]
    owners += [kind for owner in list(owners) for kind in vars(owner).values() if inspect.isclass(kind)]
    owners += [torch.Tensor, nn.Linear, nn.LayerNorm, nn.ModuleList, Stack]
    owners = list({id(owner): owner for owner in owners}.values())
    model, x = seeded(Stack), noise(device)
    dop.extend(model)
    _ = dop.enable_group_offload, dop.onloaded
    before = [dict(vars(owner)) for owner in owners]

    def replaced() -> list[str]:
        found = []
        for owner, kept in zip(owners, before, strict=True):
            now = dict(vars(owner))
            # Caches and lazily imported names may come; nothing may go or change.
            found += [f"{owner.__name__}.{name}" for name, value in kept.items() if now.get(name) is not value]
        return [name for name in found if name not in ("RemovableHandle.next_id",)]  # torch counts its handles there

    model.enable_group_offload(device, **settings(policy, model, device))
    model(x).sum().backward()
    assert replaced() == []
    with torch.no_grad(), dop.onloaded(model):
        model(x)
    assert replaced() == []
    model.disable_group_offload()
    assert replaced() == []
