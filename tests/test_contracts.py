"""What we rely on of diffusers, accelerate and torch beyond their public interfaces, pinned name by name."""

from __future__ import annotations

import copy
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
from diffusers_offload_plus.offload.diffusers_door import HOOK_NAME


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
    door = "diffusers_offload_plus.offload.diffusers_door"
    monkeypatch.delattr(stock, name)
    monkeypatch.delitem(sys.modules, door)
    with pytest.raises(ContractError, match=rf"{name}.*relies on"):
        importlib.import_module(door)


def test_no_library_attribute_is_replaced() -> None:
    import accelerate.hooks
    import diffusers.hooks.hooks
    import diffusers.models.modeling_utils
    import diffusers.pipelines.pipeline_utils

    owners = [
        stock, diffusers.hooks.hooks, diffusers.models.modeling_utils, diffusers.pipelines.pipeline_utils,
        diffusers.models.modeling_utils.ModelMixin, diffusers.DiffusionPipeline, accelerate.hooks,
        HookRegistry, ModelHook, nn.Module, nn.Linear, nn.Parameter, torch.Tensor,
    ]  # fmt: skip
    before = [dict(vars(owner)) for owner in owners]
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    dop.extend(model).enable_group_offload("cpu")
    model(torch.ones(1, 2))
    dop.disable_group_offload(model)
    for owner, attributes in zip(owners, before, strict=True):
        now = vars(owner)
        assert now.keys() == attributes.keys(), owner
        assert all(now[name] is value for name, value in attributes.items()), owner
