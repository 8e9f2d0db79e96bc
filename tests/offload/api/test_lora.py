"""LoRA on an offloaded pipeline: step by step the same as on an un-offloaded one, and only our hooks left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.hooks.diffusers_api import HOOK_NAME, registry_of, stock_hooks
from diffusers_offload_plus.offload.hooks.hook import GroupOffloadPlusHook
from tests.support.models import assert_plain
from tests.support.policies import settings, soaked
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES, PROMPT, models_of, seeded
from tests.zoo.quantized import QUANTISERS

pytestmark = pytest.mark.usefixtures("meter")
every_policy = pytest.mark.parametrize(
    "policy",
    [
        "block-2-stream",
        "leaf-stream",
        "half",
        *soaked("block", "leaf-lean", "disk-block-stream-budget", "disk-leaf-stream"),
    ],
)

State = dict[str, torch.Tensor]
Step = Callable[[Any], object]

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "q_proj", "v_proj")


def adapter(seed: int, rank: int = 4, *, dora: bool = False, parts: tuple[str, ...] = ("transformer",)) -> State:
    """A LoRA for the attention of parts of a Flux pipeline, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    pipeline, state = PIPELINES["flux"].build(), {}
    for part in parts:
        for name, layer in getattr(pipeline, part).named_modules():
            if not isinstance(layer, nn.Linear) or not name.endswith(TARGETS):
                continue
            key = f"{part}.{name}"
            state[f"{key}.lora_A.weight"] = 0.3 * torch.randn(rank, layer.in_features, generator=generator)
            state[f"{key}.lora_B.weight"] = 0.3 * torch.randn(layer.out_features, rank, generator=generator)
            if dora:
                state[f"{key}.lora_magnitude_vector"] = 1 + torch.rand(layer.out_features, generator=generator)
    assert state
    return state


def latents(pipeline: Any) -> torch.Tensor:
    """One step, from the prompt."""
    found: torch.Tensor = pipeline(
        PROMPT,
        height=16,
        width=16,
        num_inference_steps=1,
        max_sequence_length=16,
        generator=seeded(0),
        output_type="latent",
    ).images
    return found.cpu()


def assert_only_ours(pipeline: Any) -> None:
    """No stock hook anywhere, and each hooked forward is wrapped once."""
    for part, model in models_of(pipeline).items():
        assert attachment_of(model) is not None, part
        assert stock_hooks(model) == []
        for name, module in model.named_modules():
            registry = registry_of(module)
            if registry is None:
                continue
            assert list(registry.hooks) == [HOOK_NAME], name
            hook = registry.get_hook(HOOK_NAME)
            assert isinstance(hook, GroupOffloadPlusHook), name
            assert len(registry._fn_refs) == 1, name


class Two:
    """An offloaded pipeline and an un-offloaded one, on which the same is done."""

    def __init__(self, device: torch.device, policy: str) -> None:
        self.plain = PIPELINES["flux"].build().to(device)
        self.ours = PIPELINES["flux"].build()
        dop.enable_group_offload(self.ours, device, **settings(policy, self.ours, device))
        self.last = self.agree("before")

    def agree(self, where: str) -> torch.Tensor:
        want = latents(self.plain)
        for number in range(2):
            got = latents(self.ours)
            assert torch.equal(got, want), f"{where}, pass {number}: differs by {(got - want).abs().max()}"
        return want

    def step(self, name: str, what: Step, *, matters: bool | None = True) -> None:
        what(self.plain)
        what(self.ours)
        assert_only_ours(self.ours)
        now = self.agree(name)
        if matters is not None:
            assert torch.equal(now, self.last) != matters, (
                f"{name} was {'' if matters else 'not '}to change the output"
            )
        self.last = now

    def finish(self) -> None:
        for part, model in models_of(self.ours).items():
            theirs = models_of(self.plain)[part].state_dict()
            mine = model.state_dict()
            assert mine.keys() == theirs.keys()
            assert [key for key in mine if not torch.equal(mine[key].cpu(), theirs[key].cpu())] == []
        dop.disable_group_offload(self.ours)
        for model in models_of(self.ours).values():
            assert_plain(model)
            assert all(p.device.type == "cpu" for p in model.parameters())


@every_policy
def test_the_life_of_two_adapters(policy: str, device: torch.device) -> None:
    two = Two(device, policy)
    start = two.last
    two.step("load", lambda p: p.load_lora_weights(adapter(1), adapter_name="one"))
    two.step("second", lambda p: p.load_lora_weights(adapter(2, rank=2), adapter_name="two"), matters=None)
    two.step("both", lambda p: p.set_adapters(["one", "two"], [0.7, 0.4]))
    two.step("second alone", lambda p: p.set_adapters("two"))
    two.step("disable", lambda p: p.disable_lora())
    assert torch.equal(two.last, start)
    two.step("enable", lambda p: p.enable_lora())
    two.step("first alone", lambda p: p.set_adapters("one"))
    two.step("delete", lambda p: p.delete_adapters("two"), matters=False)
    two.step("unload", lambda p: p.unload_lora_weights())
    assert torch.equal(two.last, start)
    two.finish()


@every_policy
def test_fuse_and_unfuse(policy: str, device: torch.device) -> None:
    two = Two(device, policy)
    two.step("load", lambda p: p.load_lora_weights(adapter(1), adapter_name="one"))
    two.step("fuse", lambda p: p.fuse_lora(components=["transformer"], lora_scale=0.5))
    two.step("unfuse", lambda p: p.unfuse_lora(components=["transformer"]))
    two.step("second", lambda p: p.load_lora_weights(adapter(2), adapter_name="two"), matters=None)
    two.step("both", lambda p: p.set_adapters(["one", "two"], [0.7, 0.4]))
    two.step("fuse both", lambda p: p.fuse_lora(components=["transformer"], adapter_names=["one", "two"]))
    two.step("unload the fused", lambda p: p.unload_lora_weights(), matters=False)
    two.finish()


@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_adapter_of_a_text_encoder(policy: str, device: torch.device) -> None:
    two = Two(device, policy)
    start = two.last
    both = adapter(1, parts=("transformer", "text_encoder"))
    two.step("load", lambda p: p.load_lora_weights(dict(both), adapter_name="one"))
    two.step("disable", lambda p: p.disable_lora(), matters=True)
    two.step("enable", lambda p: p.enable_lora(), matters=True)
    two.step("fuse", lambda p: p.fuse_lora(components=["transformer", "text_encoder"]), matters=None)
    two.step("unfuse", lambda p: p.unfuse_lora(components=["transformer", "text_encoder"]), matters=None)
    two.step("unload", lambda p: p.unload_lora_weights())
    assert torch.allclose(two.last, start, atol=1e-4)
    two.finish()


@pytest.mark.parametrize("policy", ["block-2-stream", "leaf-lean"])
def test_hotswap(policy: str, device: torch.device) -> None:
    two = Two(device, policy)
    one, other = adapter(1), adapter(2)
    two.step("load", lambda p: p.load_lora_weights(dict(one), adapter_name="one"))
    two.step("swap", lambda p: p.load_lora_weights(dict(other), adapter_name="one", hotswap=True))
    two.step("swap back", lambda p: p.load_lora_weights(dict(one), adapter_name="one", hotswap=True))
    two.step("unload", lambda p: p.unload_lora_weights())
    two.finish()


@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_dora(policy: str, device: torch.device) -> None:
    """DoRA reads the base weight, which nobody calls on its own, to take its norm."""
    two = Two(device, policy)
    dora = adapter(1, dora=True)
    two.step("load", lambda p: p.load_lora_weights(dict(dora), adapter_name="one"))
    assert any("magnitude" in name for name, _ in two.ours.transformer.named_parameters())
    two.step("fuse", lambda p: p.fuse_lora(components=["transformer"]))
    two.step("unfuse", lambda p: p.unfuse_lora(components=["transformer"]))
    two.step("unload", lambda p: p.unload_lora_weights())
    two.finish()


@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_adapter_there_before_enabling(policy: str, device: torch.device) -> None:
    two = Two(device, policy)
    dop.disable_group_offload(two.ours)
    for pipeline in (two.plain, two.ours):
        pipeline.load_lora_weights(adapter(1), adapter_name="one")
    dop.enable_group_offload(two.ours, device, **settings(policy, two.ours, device))
    two.step("first pass", lambda p: None)
    two.step("second", lambda p: p.load_lora_weights(adapter(2), adapter_name="two"), matters=None)
    two.step("both", lambda p: p.set_adapters(["one", "two"], [1.0, -0.5]))
    two.step("unload", lambda p: p.unload_lora_weights())
    two.finish()


@pytest.mark.parametrize("policy", ["block-2-stream", "leaf-lean"])
def test_loaded_before_the_first_pass(policy: str, device: torch.device) -> None:
    plain = PIPELINES["flux"].build().to(device)
    ours = PIPELINES["flux"].build()
    dop.enable_group_offload(ours, device, **settings(policy, ours, device))
    for pipeline in (plain, ours):
        pipeline.load_lora_weights(adapter(1))
        pipeline.fuse_lora()
    assert_only_ours(ours)
    assert torch.equal(latents(ours), latents(plain))
    dop.disable_group_offload(ours)


@pytest.mark.parametrize("policy", ["block-2-stream", "leaf-stream"])
@pytest.mark.parametrize("kind", ["int8_weight_only"])
def test_adapter_over_quantised_weights(kind: str, policy: str, device: torch.device) -> None:
    case = MODELS["flux"]
    state = {key.removeprefix("transformer."): value for key, value in adapter(1).items()}

    def prepared(model: nn.Module) -> nn.Module:
        model.load_lora_adapter(dict(state), prefix=None, adapter_name="one")
        return model

    plain = prepared(QUANTISERS[kind](case.build()).to(device))
    ours = QUANTISERS[kind](case.build())
    dop.enable_group_offload(ours, device, **settings(policy, ours, device))
    without = case.run(ours, "forward", device)
    prepared(ours)
    assert stock_hooks(ours) == []
    want = case.run(plain, "forward", device)
    assert not torch.equal(want[0], without[0])
    for _ in range(2):
        assert torch.equal(case.run(ours, "forward", device)[0], want[0])
    ours.delete_adapters("one")
    assert torch.equal(case.run(ours, "forward", device)[0], without[0])
    dop.disable_group_offload(ours)


def test_saved_adapter_is_the_loaded_one(device: torch.device, tmp_path: Any) -> None:
    state = adapter(1)
    pipeline = PIPELINES["flux"].build()
    dop.enable_group_offload(pipeline, device, offload_type="leaf_level", use_stream=True)
    pipeline.load_lora_weights(dict(state), adapter_name="one")
    latents(pipeline)
    pipeline.transformer.save_lora_adapter(str(tmp_path), adapter_name="one")
    from safetensors.torch import load_file

    saved = load_file(next(tmp_path.glob("*.safetensors")))
    assert {f"transformer.{key}" for key in saved} == {key for key in state if key.startswith("transformer.")}
    assert all(torch.equal(value, state[f"transformer.{key}"]) for key, value in saved.items())
    dop.disable_group_offload(pipeline)
