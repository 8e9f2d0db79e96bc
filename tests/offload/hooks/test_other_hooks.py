"""Side by side with accelerate's hooks and diffusers' own: in either order, and taken away again."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import accelerate.hooks
import diffusers
import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HookRegistry,
    LayerSkipConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_layer_skip,
)
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus import HookConflictError
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.hooks.diffusers_api import HOOK_NAME, registry_of, stock_hooks
from diffusers_offload_plus.offload.hooks.hook import GroupOffloadPlusHook
from tests.support.meter import Meter
from tests.support.models import BUDGETED, Block, Stack, assert_plain, assert_same, noise, seeded
from tests.support.policies import settings, soaked
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES, PROMPT, flux_parts, models_of, quiet

pytestmark = pytest.mark.usefixtures("meter")
every_policy = pytest.mark.parametrize("policy", BUDGETED)
either_order = pytest.mark.parametrize("first", ["ours first", "theirs first"])

CASE = MODELS["flux"]


def flux() -> nn.Module:
    return CASE.build().eval()


def unoffloaded(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    return CASE.run(copy.deepcopy(model).to(device), "forward", device)


def assert_right(model: nn.Module, want: list[torch.Tensor], device: torch.device) -> None:
    for _ in range(2):
        assert torch.equal(CASE.run(model, "forward", device)[0], want[0])


def depths(model: nn.Module) -> set[int]:
    """How many wrappers lie on the forwards that have any."""
    found = set()
    for module in model.modules():
        forward, depth = vars(module).get("forward"), 0
        while isinstance(forward, functools.partial):
            forward, depth = getattr(forward, "__wrapped__", None), depth + 1
        if depth:
            found.add(depth)
    return found


def in_order(first: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    for step in (ours, theirs) if first == "ours first" else (theirs, ours):
        step()


@pytest.mark.parametrize("policy", BUDGETED)
def test_a_hook_of_accelerate_before_ours_removed_again(policy: str, device: torch.device, meter: Meter) -> None:
    model = flux()
    want = unoffloaded(model, device)
    add_hook_to_module(model, ModelHook())
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    assert_right(model, want, device)
    remove_hook_from_module(model)  # puts the forward back that was there before ours
    assert_right(model, want, device)
    attachment = attachment_of(model)
    assert attachment is not None
    hook = attachment.hook_on(model)
    assert hook is not None
    assert hook.fires(), "the displaced hook was not put back"


@pytest.mark.parametrize("policy", BUDGETED)
def test_a_hook_of_accelerate_after_ours_removed_again(policy: str, device: torch.device, meter: Meter) -> None:
    model = flux()
    want = unoffloaded(model, device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    add_hook_to_module(model, ModelHook())
    assert_right(model, want, device)
    remove_hook_from_module(model)
    assert_right(model, want, device)
    dop.disable_group_offload(model)
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("order", ["before", "after"])
def test_components_manager(order: str, device: torch.device) -> None:
    model = flux()
    want = unoffloaded(model, device)
    manager = diffusers.ComponentsManager()
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
def test_first_block_cache(order: str, device: torch.device) -> None:
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


@every_policy
def test_reapplication_wraps_once(policy: str, device: torch.device) -> None:
    model = CASE.build()
    want = CASE.run(CASE.build().to(device), "forward", device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    hooked = [name for name, module in model.named_modules() if registry_of(module) is not None]
    for _ in range(4):
        _maybe_remove_and_reapply_group_offloading(model)
        assert stock_hooks(model) == []
        assert_same(CASE.run(model, "forward", device), want)
        for name, module in model.named_modules():
            registry = registry_of(module)
            assert (registry is not None) == (name in hooked), name
            if registry is not None:
                assert list(registry.hooks) == [HOOK_NAME]
                assert isinstance(registry.get_hook(HOOK_NAME), GroupOffloadPlusHook)
                assert len(registry._fn_refs) == 1
    assert depths(model) == {1}
    dop.disable_group_offload(model)
    assert_plain(model)


TIME = [0]
"""The time step a denoising is at."""

CACHES: dict[str, Callable[[], Any]] = {
    "first_block": lambda: FirstBlockCacheConfig(threshold=10.0),
    "pyramid": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
    ),
    "faster": lambda: FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 600),
        unconditional_batch_timestep_skip_range=(-1, 600),
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: TIME[0],
    ),
    "magnitude": lambda: MagCacheConfig(
        threshold=10.0,
        num_inference_steps=4,
        retention_ratio=0.1,
        max_skip_steps=1,
        mag_ratios=torch.linspace(1.0, 0.9, 4),
    ),
}


def denoised(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    """The steps of one denoising."""
    found = []
    with model.cache_context("cond"):
        for seed, TIME[0] in enumerate((900, 700, 500, 300)):
            found += CASE.run(model, "forward", device, seed)
    return found


@either_order
@pytest.mark.parametrize("policy", ["leaf-stream", "half", "auto", *soaked("block-2-stream", "tight")])
@pytest.mark.parametrize("name", CACHES)
def test_caches(name: str, policy: str, first: str, device: torch.device) -> None:
    plain, model = CASE.build().to(device), CASE.build()
    without = denoised(plain, device)
    in_order(
        first,
        lambda: dop.enable_group_offload(model, device, **settings(policy, model, device)),
        lambda: model.enable_cache(CACHES[name]()),
    )
    plain.enable_cache(CACHES[name]())
    want = denoised(plain, device)
    assert any(not torch.equal(a, b) for a, b in zip(want, without, strict=True)), "the cache was meant to matter"
    assert_same(denoised(model, device), want)
    for one in (plain, model):
        one._reset_stateful_cache()
    assert_same(denoised(model, device), denoised(plain, device))
    budget = attachment_of(model).engine.budget  # type: ignore[union-attr]
    assert budget.limit is None or budget.auto or budget.peak <= budget.limit
    model.disable_cache()
    assert_same(denoised(model, device), without)
    assert attachment_of(model) is not None
    dop.disable_group_offload(model)
    assert_same(denoised(model.to(device), device), without)


@either_order
@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_skipped_layers(policy: str, first: str, device: torch.device) -> None:
    config = LayerSkipConfig(indices=[1], fqn="transformer_blocks", skip_attention=True, skip_ff=True)
    plain, model = CASE.build().to(device), CASE.build()
    in_order(
        first,
        lambda: dop.enable_group_offload(model, device, **settings(policy, model, device)),
        lambda: apply_layer_skip(model, copy.copy(config)),
    )
    apply_layer_skip(plain, copy.copy(config))
    want = CASE.run(plain, "forward", device)
    for _ in range(2):
        assert_same(CASE.run(model, "forward", device), want)
    dop.disable_group_offload(model)


@either_order
@every_policy
def test_layerwise_casting(policy: str, first: str, device: torch.device) -> None:
    """Weights are stored in float8 and are cast for each layer, whichever hook is outside."""
    plain, model = CASE.build(), CASE.build()
    casting = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    in_order(
        first,
        lambda: dop.enable_group_offload(model, device, **settings(policy, model, device)),
        lambda: model.enable_layerwise_casting(**casting),
    )
    plain.enable_layerwise_casting(**casting)
    plain.to(device)
    want = CASE.run(plain, "forward", device)
    for _ in range(2):
        assert_same(CASE.run(model, "forward", device), want)
    mine, theirs = model.state_dict(), plain.state_dict()
    assert {str(tensor.dtype) for tensor in mine.values()} == {"torch.float8_e4m3fn", "torch.float32"}
    for key, tensor in mine.items():
        assert tensor.device.type == "cpu", key
        assert tensor.dtype == theirs[key].dtype, key
        assert torch.equal(tensor.float(), theirs[key].cpu().float()), key
    dop.disable_group_offload(model)


@either_order
@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_a_hook_of_the_users_own(policy: str, first: str, device: torch.device) -> None:
    class Doubled(DiffusersHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return output * 2

    def add(model: nn.Module) -> None:
        for target in (model, model.blocks[2], model.blocks[4].up):
            HookRegistry.check_if_exists_or_initialize(target).register_hook(Doubled(), "doubled")

    plain, model = seeded(Stack).to(device), seeded(Stack)
    in_order(
        first, lambda: dop.enable_group_offload(model, device, **settings(policy, model, device)), lambda: add(model)
    )
    add(plain)
    for _ in range(2):
        assert_same(model(noise(device)), plain(noise(device)))
    for one in (plain, model):
        HookRegistry.check_if_exists_or_initialize(one).remove_hook("doubled", recurse=True)
    assert_same(model(noise(device)), plain(noise(device)))
    dop.disable_group_offload(model)
    assert_same(model(noise("cpu")), seeded(Stack)(noise("cpu")))


@either_order
def test_components_manager_with_automatic_offloading(first: str, device: torch.device) -> None:
    """Other models come and go by accelerate's hooks, ours stays where it is; both ends are taken down again."""
    want = PIPELINES["modular_flux"].run(PIPELINES["modular_flux"].build().to(device), PROMPT, 0)
    manager = diffusers.ComponentsManager()
    pipeline = diffusers.FluxAutoBlocks().init_pipeline(components_manager=manager, collection="one")
    pipeline.update_components(**flux_parts())
    quiet(pipeline)
    in_order(
        first,
        lambda: dop.enable_group_offload(pipeline.transformer, device, use_stream=True),
        lambda: manager.enable_auto_cpu_offload(device=device, memory_reserve_margin="0GB"),
    )
    for _ in range(2):
        assert np.array_equal(PIPELINES["modular_flux"].run(pipeline, PROMPT, 0), want)
    transferred = dop.offload_report(pipeline.transformer).components[0].transferred_bytes
    assert transferred > 0
    manager.disable_auto_cpu_offload()
    for name, model in models_of(pipeline).items():
        if name != "transformer":
            model.to(device)
    assert np.array_equal(PIPELINES["modular_flux"].run(pipeline, PROMPT, 0), want)
    report = dop.offload_report(pipeline.transformer).components[0]
    assert report.transferred_bytes > transferred, "our hooks fire again"
    assert report.peak_device_bytes <= report.device_bound
    dop.disable_group_offload(pipeline.transformer)
    assert all(p.device.type == "cpu" for p in pipeline.transformer.parameters())


WHERE: dict[str, Callable[[Any], nn.Module]] = {
    "root": lambda m: m,
    "block": lambda m: m.blocks[3],
    "layer": lambda m: m.blocks[3].up,
}


@either_order
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_displaced_wrapper_is_noticed(policy: str, where: str, first: str, device: torch.device) -> None:
    model = seeded(Stack)
    want = seeded(Stack).to(device)(noise(device))
    module = WHERE[where](model)
    in_order(
        first,
        lambda: dop.enable_group_offload(model, device, **settings(policy, model, device)),
        lambda: accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook(), append=True),
    )
    assert_same(model(noise(device)), want)
    accelerate.hooks.remove_hook_from_module(module)
    for _ in range(3):
        assert_same(model(noise(device)), want)
    attachment, ran = attachment_of(model), []
    assert attachment is not None
    run = attachment.engine.run
    attachment.engine.run = lambda at, *rest: ran.append(at) or run(at, *rest)
    assert_same(model(noise(device)), want)
    hooked = module if attachment.hook_on(module) else model
    assert any(called.module is hooked for called in ran), "called through our hook again"
    dop.disable_group_offload(model)
    assert_same(model.to(device)(noise(device)), want)


@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_forward_replaced_by_the_user(policy: str, device: torch.device) -> None:
    """As some libraries do to extend a model: the new forward calls the one it found, or does not."""
    model, plain = seeded(Stack), seeded(Stack).to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    model(noise(device))
    for one in (model, plain):
        found = one.blocks[2].forward
        one.blocks[2].forward = lambda x, found=found: found(x) + 1
        layer = one.blocks[4].up
        layer.forward = lambda x, layer=layer: nn.functional.linear(x, layer.weight * 2, layer.bias)
    for _ in range(2):
        assert_same(model(noise(device)), plain(noise(device)))
    dop.disable_group_offload(model)


@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_forward_replaced_on_the_class(policy: str, device: torch.device) -> None:
    """As TeaCache's scripts do after the model is set up: all instances of the class run the new forward."""

    class Patched(Block):
        pass

    class Whole(Stack):
        def __init__(self) -> None:
            super().__init__(block=Patched)

    def twice(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.outlet(Stack.forward(self, x))

    def doubled(self: Any, x: torch.Tensor) -> torch.Tensor:
        return Block.forward(self, x) * 2

    plain, model = seeded(Whole).to(device), seeded(Whole)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for module, patched in ((model, twice), (model.blocks[0], doubled)):
        before = model(noise(device))
        kept = type(module).forward
        type(module).forward = patched
        for _ in range(2):
            assert_same(model(noise(device)), plain(noise(device)))
        assert not torch.equal(model(noise(device)), before), "the new forward was meant to matter"
        type(module).forward = kept
        assert_same(model(noise(device)), before)
    dop.disable_group_offload(model)


@either_order
def test_torch_forward_hooks(first: str, device: torch.device) -> None:
    """Hooks of torch itself see device tensors going in and out, and may use the module's weights."""
    seen: list[torch.device] = []

    def note(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.extend((output.device, module.weight.device))
        return output + module.weight.sum()

    plain, model = seeded(Stack).to(device), seeded(Stack)
    in_order(
        first,
        lambda: dop.enable_group_offload(model, device, offload_type="leaf_level", use_stream=True),
        lambda: model.blocks[1].up.register_forward_hook(note),
    )
    plain.blocks[1].up.register_forward_hook(note)
    for _ in range(2):
        assert_same(model(noise(device)), plain(noise(device)))
    assert seen[1::2] == [device if number % 2 else seen[1] for number in range(4)]
    assert set(seen[0::2]) == {device}
    dop.disable_group_offload(model)
