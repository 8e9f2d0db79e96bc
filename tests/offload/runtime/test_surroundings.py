"""What surrounds a model: the mode it was born in, the default device, threads of autograd, how long it lives."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import Block, Stack, assert_same, noise, seeded
from tests.support.policies import settings
from tests.support.virtual import engine_of
from tests.zoo.quantized import QUANTISERS

SIZES = (32, 64)  # of a layer of a block
MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}


@pytest.mark.parametrize("run", MODES)
@pytest.mark.parametrize("born", ["model", "buffer", "layer", "loaded"])
@pytest.mark.parametrize("policy", ["block", "leaf-stream", "half", "disk"])
def test_what_was_born_in_inference_mode_runs_in_each_mode(
    policy: str, born: str, run: str, device: torch.device, meter: Meter
) -> None:
    def build() -> Any:
        return seeded(lambda: Stack(depth=4))

    reference = build()
    assert tuple(reversed(reference.blocks[2].up.weight.shape)) == SIZES
    with torch.inference_mode():
        model = build() if born == "model" else None
    model = model or build()
    for one in (model, reference):
        with torch.inference_mode(one is model):
            if born == "buffer":
                one.blocks[1].register_buffer("late", torch.ones(3))
            elif born == "layer":
                one.blocks[2].up = seeded(lambda: nn.Linear(*SIZES))
            elif born == "loaded":
                one.load_state_dict({name: t * 0.5 for name, t in one.state_dict().items()}, assign=True)
    x = noise(device)
    reference.to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for _ in range(3):
        with MODES[run]():
            assert_same(model(x), reference(x))
    for one in (model, reference):  # and is written as any other
        with torch.no_grad():
            one.blocks[0].up.weight.mul_(2)
    with MODES[run]():
        assert_same(model(x), reference(x))
    dop.disable_group_offload(model)
    assert_same([p.detach() for p in model.parameters()], [p.detach().cpu() for p in reference.parameters()])


@pytest.mark.parametrize("born", ["inference", "no_grad"])
@pytest.mark.parametrize("run", ["inference", "no_grad"])
@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("policy", ["leaf-stream", "half"])
def test_quantised_weights_in_inference_mode(
    policy: str, kind: str, run: str, born: str, device: torch.device, meter: Meter
) -> None:
    with MODES[born]():
        model = seeded(lambda: nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))))
        QUANTISERS[kind](model)
    x = noise(device, 2, 64)
    with torch.inference_mode():
        want = model(x.cpu()).clone()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for _ in range(3):
        with MODES[run]():
            assert_same(model(x).cpu(), want)
    dop.disable_group_offload(model)
    with MODES[run]():
        assert_same(model(x.cpu()), want)


@pytest.fixture
def default_device(device: torch.device) -> Iterator[None]:
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("policy", ["block", "leaf-stream", "block-lean", "half", "auto", "disk"])
def test_a_default_device_changes_nothing(
    policy: str, device: torch.device, meter: Meter, default_device: None
) -> None:
    with torch.device("cpu"):
        model = seeded(Stack)
        reference = copy.deepcopy(model).to(device)
        chosen = settings(policy, model, device)
    dop.enable_group_offload(model, device, **chosen)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(noise(device)), reference(noise(device)))
    dop.disable_group_offload(model)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


@pytest.mark.timeout(60)
@pytest.mark.parametrize("policy", ["block", "leaf-stream"])
def test_backward_with_checkpointing_inside_onloaded_ends(policy: str, device: torch.device, meter: Meter) -> None:
    """Autograd's thread computes the blocks anew while the thread that holds the pass waits for it."""
    model, reference = seeded(Checkpointed), seeded(Checkpointed).to(device)
    reference(noise(device)).sum().backward()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    with dop.onloaded(model):
        model(noise(device)).sum().backward()
    dop.disable_group_offload(model)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_same(ours.grad.cpu(), theirs.grad.cpu())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("inside", ["first", "second"])
def test_backward_through_two_models_of_one_budget_ends(inside: str, device: torch.device, meter: Meter) -> None:
    """The thread that holds the pass of one model waits while autograd's thread calls the other."""
    pipe = Pipeline(first=seeded(Checkpointed), second=seeded(Checkpointed, 1))
    plain = copy.deepcopy(pipe.components)
    x = noise(device).requires_grad_()
    plain["second"].to(device)(plain["first"].to(device)(x)).sum().backward()
    want, x.grad = x.grad, None
    dop.enable_group_offload(pipe, device, vram_budget=settings("whole", pipe, device)["vram_budget"] * 2)
    with dop.onloaded(pipe.components[inside]):
        pipe.components["second"](pipe.components["first"](x)).sum().backward()
    assert_same(x.grad, want)
    dop.disable_group_offload(pipe)
    for name, model in pipe.components.items():
        for ours, theirs in zip(model.parameters(), plain[name].parameters(), strict=True):
            assert_same(ours.grad, theirs.grad)


class Pipeline:
    def __init__(self, **components: nn.Module) -> None:
        self.components = components


@pytest.mark.parametrize("policy", ["half", "auto", "leaf-stream"])
def test_a_dropped_component_is_freed_and_counts_no_more(policy: str, device: torch.device, meter: Meter) -> None:
    pipe = Pipeline(encoder=seeded(Stack), transformer=seeded(Stack, 1))
    reference = copy.deepcopy(pipe.components["transformer"]).to(device)
    dop.enable_group_offload(pipe, device, **settings(policy, pipe, device))
    with torch.no_grad():
        for component in pipe.components.values():
            component(noise(device))
    del component
    engine = engine_of(pipe.components["transformer"])
    alive = weakref.ref(pipe.components["encoder"].blocks[0].up.weight)
    del pipe.components["encoder"]
    gc.collect()
    assert alive() is None
    assert engine.budget.live == engine.usage.live, "what was dropped takes no part of the budget"
    with torch.no_grad():
        for _ in range(2):
            assert_same(pipe.components["transformer"](noise(device)), reference(noise(device)))
    dop.disable_group_offload(pipe)


@pytest.mark.parametrize("policy", ["block-stream", "leaf", "half", "disk"])
def test_writes_after_share_memory_count(policy: str, device: torch.device, meter: Meter) -> None:
    """``share_memory()`` puts other memory into the same storage object."""
    model, reference = seeded(Stack), seeded(Stack).to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    mode: AbstractContextManager[Any] = torch.no_grad()
    with mode:
        assert_same(model(noise(device)), reference(noise(device)))
        model.share_memory()
        for _ in range(2):
            for one in (model, reference):
                one.blocks[1].up.weight.mul_(1.5)
            assert_same(model(noise(device)), reference(noise(device)))
    dop.disable_group_offload(model)


def test_a_store_is_written_whatever_the_default_device(
    device: torch.device, tmp_path: Path, default_device: None
) -> None:
    with torch.device("cpu"):
        model = seeded(Stack)
    dop.enable_group_offload(model, "cpu", offload_to_disk_path=tmp_path, keep=True)
    dop.disable_group_offload(model)
    assert list((tmp_path / "objects").iterdir())


@pytest.mark.parametrize("policy", ["block", "leaf-stream", "block-record", "tight", "half", "disk-leaf-stream"])
def test_a_model_is_dropped_while_copies_are_under_way(policy: str, device: torch.device, meter: Meter) -> None:
    """The memory that they read goes with the model, so they are waited for."""
    model = seeded(lambda: Stack(depth=8))
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    with torch.no_grad():
        for _ in range(3):
            model(noise(device))
    del model
    gc.collect()
    assert meter.races == 0, meter.race_log
    assert meter.pinned <= 0
