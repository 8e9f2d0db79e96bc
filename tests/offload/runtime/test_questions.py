"""Asking a model for its dtype, its device and the like costs no copy and no wait, in a pass and between two."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.runtime.questions import Question, question_of
from tests.support.meter import Meter
from tests.support.models import Block, noise, seeded
from tests.support.policies import settings
from tests.support.virtual import engine_of


class Asked:
    """What its attribute is asked for is told by the code that looks it up."""

    @property
    def weight(self) -> torch.Tensor:
        self.question = question_of(sys._getframe(1))
        return torch.ones(2)

    def parameters(self) -> Any:
        self.question = question_of(sys._getframe(1))
        yield torch.ones(2)


METADATA: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda m: m.weight.dtype,
    "shape": lambda m: m.weight.shape[0],
    "size": lambda m: m.weight.size(0),
    "numel": lambda m: m.weight.numel(),
    "requires_grad": lambda m: m.weight.requires_grad,
    "none": lambda m: m.weight is None,
    "branch": lambda m: 1 if m.weight is not None else 2,
    "isinstance": lambda m: isinstance(m.weight, torch.Tensor),
    "compared": lambda m: torch.float32 != m.weight.dtype,
    "next": lambda m: next(m.parameters()).dtype,
    "next of iter": lambda m: next(iter(m.parameters())).shape,
}
DEVICE: dict[str, Callable[[Any], Any]] = {
    "device": lambda m: m.weight.device,
    "is_cuda": lambda m: m.weight.is_cuda,
}
VALUES: dict[str, Callable[[Any], Any]] = {
    "data": lambda m: m.weight.data,
    "sum": lambda m: m.weight.sum(),
    "argument": lambda m: torch.relu(m.weight),
    "kept": lambda m: [m.weight],
    "to": lambda m: m.weight.to(torch.float64),
    "equal": lambda m: m.weight == 1,
    "second of isinstance": lambda m: isinstance(1, (int, type(m.weight))),
}


@pytest.mark.parametrize("name", [*METADATA, *DEVICE, *VALUES])
def test_the_next_instruction_tells(name: str) -> None:
    asked = Asked()
    spelling = {**METADATA, **DEVICE, **VALUES}[name]
    for question, spellings in ((Question.METADATA, METADATA), (Question.DEVICE, DEVICE), (Question.VALUES, VALUES)):
        if name in spellings:
            for _ in range(100):  # Python rewrites what it runs often
                spelling(asked)
                assert asked.question is question


ASKING: dict[str, Callable[[Any], object]] = {
    "layer's dtype": lambda b: b.up.weight.dtype,
    "layer's device": lambda b: b.up.weight.device,
    "next parameter's dtype": lambda b: next(b.parameters()).dtype,
    "next parameter's shape": lambda b: next(iter(b.parameters())).shape,
    "isinstance": lambda b: isinstance(b.up.weight, nn.Parameter) and b.up.weight.dtype,
}


class Asking(Block):
    """Looks at a layer's weight before it calls the layer, as T5 and many others do."""

    how = "layer's dtype"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ASKING[self.how](self)
        return super().forward(x)


@pytest.mark.parametrize("how", ASKING)
@pytest.mark.parametrize("policy", ["block-stream", "leaf-stream", "leaf", "half"])
def test_a_question_costs_no_copy_and_no_wait(policy: str, how: str, device: torch.device, meter: Meter) -> None:
    if device.type != "sim":
        pytest.skip("copies and waits are counted on the simulated accelerator")
    from tests.simulated import reset_stats, stats

    found = []
    for kind in (Block, Asking):
        model = seeded(lambda kind=kind: nn.Sequential(*(kind() for _ in range(6)))).eval()
        for block in model:
            block.how = how
        want = copy.deepcopy(model).to(device)(noise(device))
        dop.enable_group_offload(model, device, **settings(policy, model, device))
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(model(noise(device)), want)
            x = noise(device)
            reset_stats()
            model(x)
        assert stats().races == 0, stats().race_log
        found.append((stats().copies, stats().h2d, stats().host_syncs))
        dop.disable_group_offload(model)
    assert found[0] == found[1]


def test_between_two_passes_a_question_moves_nothing(device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: nn.Sequential(*(Block() for _ in range(6)))).eval()
    dop.enable_group_offload(model, device, **settings("whole", model, device))
    with torch.no_grad():
        model(noise(device))
    assert engine_of(model).forward_pass.caches
    for _ in range(3):  # not within an assertion, which pytest rewrites so that it holds every value
        found = [next(model.parameters()).dtype, model[2].up.weight.shape[0], model[3].up.weight is None]
        assert found == [torch.float32, model[2].up.out_features, False]
    assert engine_of(model).forward_pass.caches
    assert model[3].up.weight.sum().device.type == "cpu", "whoever takes the values sees the host"
    dop.disable_group_offload(model)
