"""Forwards that other libraries wrap, and structure that they swap while a forward runs."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import WIDTH, Stack, assert_same, noise, seeded
from tests.support.policies import settings
from tests.support.virtual import engine_of


def closure(module: Any) -> None:
    """A plain function over the forward that was there."""
    inner = module.forward
    module.forward = lambda *args, **kwargs: inner(*args, **kwargs)


def wrapped(module: Any) -> None:
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    module.forward = forward


class InOne(nn.Module):
    """Runs all blocks; in the place of the list that holds them."""

    def __init__(self, blocks: nn.ModuleList, model: nn.Module | None = None, *, listed: bool = False) -> None:
        super().__init__()
        self.blocks: Any = [blocks] if listed else blocks
        if model is not None:
            self.model = model
        self.listed = listed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks[0] if self.listed else self.blocks:
            x = block(x)
        return x


class WithWeights(InOne):
    """Has a layer of its own."""

    def __init__(self, blocks: nn.ModuleList, device: torch.device) -> None:
        super().__init__(blocks)
        self.gate = seeded(lambda: nn.Linear(WIDTH, WIDTH)).to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.gate(x)


@contextlib.contextmanager
def swapped(model: Any, other: nn.ModuleList) -> Iterator[None]:
    blocks, model.blocks = model.blocks, other
    try:
        yield
    finally:
        model.blocks = blocks


def swapping(make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    """As cache-dit and ParaAttention: the forward swaps the block list for one module that holds the blocks."""

    def wrap(model: Any) -> None:
        inner, other = model.forward, nn.ModuleList([make(model)])

        def forward(*args: Any, **kwargs: Any) -> Any:
            with swapped(model, other):
                return inner(*args, **kwargs)

        model.forward = forward

    return wrap


def on_blocks(model: Any) -> None:
    for block in model.blocks:
        closure(block)
    closure(model.blocks[1].up)


WRAPS: dict[str, Callable[[Any], None]] = {
    "closure": closure,
    "functools.wraps": wrapped,
    "closures of blocks": on_blocks,
    "blocks in one": swapping(lambda model: InOne(model.blocks)),
    "blocks and model in one": swapping(lambda model: InOne(model.blocks, model)),
    "blocks out of sight": swapping(lambda model: InOne(model.blocks, listed=True)),
}


@pytest.mark.parametrize("when", ["before enabling", "after enabling", "after a pass"])
@pytest.mark.parametrize("how", WRAPS)
@pytest.mark.parametrize("policy", ["block", "leaf-stream", "tight", "half", "disk"])
def test_wrapped_forwards(policy: str, how: str, when: str, device: torch.device, meter: Meter) -> None:
    x = noise(device)
    for after in ("passes", "a new plan", "disabling"):
        model: Any = seeded(lambda: Stack(depth=4))
        twin = copy.deepcopy(model).to(device)
        WRAPS[how](twin)
        with torch.no_grad():
            want = twin(x)
            if when == "before enabling":
                WRAPS[how](model)
            dop.enable_group_offload(model, device, **settings(policy, model, device))
            if when == "after a pass":
                model(x)
            if when != "before enabling":
                WRAPS[how](model)
            if after != "disabling":
                for _ in range(3):
                    assert_same(model(x), want)
            if after == "a new plan":
                dop.enable_group_offload(model, device, offload_type="leaf_level", use_stream=True)
                for _ in range(3):
                    assert_same(model(x), want)
            dop.disable_group_offload(model)
            model.to(device)
            assert_same(model(x), want)
        model.forward = twin.forward = None  # they are in cycles with what they wrap
        del model, twin


@pytest.mark.parametrize("when", ["before enabling", "after enabling", "after a pass"])
@pytest.mark.parametrize("policy", ["block", "leaf-stream", "half"])
def test_a_swapped_module_has_weights_of_its_own(policy: str, when: str, device: torch.device, meter: Meter) -> None:
    model: Any = seeded(lambda: Stack(depth=4))
    twin, x = copy.deepcopy(model).to(device), noise(device)
    wrap = swapping(lambda model: WithWeights(model.blocks, device))
    wrap(twin)
    with torch.no_grad():
        if when == "before enabling":
            wrap(model)
        dop.enable_group_offload(model, device, **settings(policy, model, device))
        if when == "after a pass":
            model(x)
        if when != "before enabling":
            wrap(model)
        for _ in range(4):
            assert_same(model(x), twin(x))
    dop.disable_group_offload(model)
    model.forward = twin.forward = None


@pytest.mark.parametrize("policy", ["tight", "half"])
def test_swapped_blocks_stay_groups(policy: str, device: torch.device, meter: Meter) -> None:
    """So a budget that blocks fit in is kept, and nothing is planned anew from call to call."""
    model: Any = seeded(lambda: Stack(depth=6))
    chosen = settings(policy, model, device)
    dop.enable_group_offload(model, device, **chosen)
    engine, x = engine_of(model), noise(device)
    WRAPS["blocks and model in one"](model)
    with torch.no_grad():
        model(x)
        groups = list(engine.groups)
        for _ in range(3):
            model(x)
    assert engine.groups == groups
    assert len(groups) > 6
    assert dop.offload_report(model).components[0].peak_device_bytes <= chosen["vram_budget"]
    model.forward = None


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_a_module_that_holds_itself(level: str, device: torch.device, meter: Meter) -> None:
    model: Any = seeded(lambda: Stack(depth=3))
    want = copy.deepcopy(model).to(device)(noise(device)).detach()
    model.blocks[1].parent = model
    dop.enable_group_offload(model, device, offload_type=level)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(noise(device)), want)
    dop.disable_group_offload(model)
    del model.blocks[1].parent
