"""Arguments of a forward are brought to the device; what the caller or the model excludes is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.models import WIDTH, Stack, assert_same, seeded
from tests.support.policies import settings

pytestmark = [pytest.mark.usefixtures("meter"), pytest.mark.parametrize("policy", ["block", "leaf-stream", "disk"])]


class Taking(nn.Module):
    """Takes tensors in every way there is, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = seeded(Stack)
        self.seen: dict[str, Any] = {}

    def forward(self, x: torch.Tensor, pair: Any, *, named: Any, cache: dict[str, Any], left: Any) -> torch.Tensor:
        self.seen = {"x": x, "pair": pair, "named": named, "cache": cache, "left": left}
        return self.stack(x + pair[0] + pair[1]["deep"] + named["list"][0])


class Skipping(Taking):
    _skip_keys = ("left",)


def arguments(device: torch.device | str) -> tuple[list[Any], dict[str, Any]]:
    x = torch.linspace(-1, 1, 2 * WIDTH).view(2, WIDTH)
    at = [(x * n).to(device) for n in range(4)]
    return [at[0], (at[1], {"deep": at[2]})], {"named": {"list": [at[3]]}, "cache": {"step": 3}, "left": x.clone()}


def plain_output(device: torch.device) -> torch.Tensor:
    args, kwargs = arguments(device)
    return seeded_taking(Taking).to(device)(*args, **kwargs)


def seeded_taking(kind: type[Taking]) -> Taking:
    torch.manual_seed(0)
    return kind()


@torch.no_grad()
def test_tensors_on_the_host_are_moved(policy: str, device: torch.device) -> None:
    want = plain_output(device)
    model = seeded_taking(Taking)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    args, kwargs = arguments("cpu")
    for _ in range(2):
        assert_same(model(*args, **kwargs), want)
    seen = model.seen
    moved = (seen["x"], seen["pair"][0], seen["pair"][1]["deep"], seen["named"]["list"][0], seen["left"])
    assert [tensor.device for tensor in moved] == [device] * len(moved)
    assert seen["cache"] is kwargs["cache"], "what holds no tensor is passed on as it is"
    assert args[0].device.type == "cpu"
    dop.disable_group_offload(model)


@torch.no_grad()
@pytest.mark.parametrize("how", ["argument", "class attribute"])
def test_excluded_keywords_are_left_where_they_are(how: str, policy: str, device: torch.device) -> None:
    want = plain_output(device)
    excluding = {"exclude_kwargs": ["left"]} if how == "argument" else {}
    model = seeded_taking(Taking if how == "argument" else Skipping)
    dop.enable_group_offload(model, device, **settings(policy, model, device), **excluding)
    args, kwargs = arguments("cpu")
    assert_same(model(*args, **kwargs), want)
    assert model.seen["left"] is kwargs["left"]
    assert model.seen["named"]["list"][0].device == device
    dop.disable_group_offload(model)


@torch.no_grad()
def test_the_argument_stands_before_the_class_attribute(policy: str, device: torch.device) -> None:
    model = seeded_taking(Skipping)
    dop.enable_group_offload(model, device, **settings(policy, model, device), exclude_kwargs=["cache"])
    args, kwargs = arguments("cpu")
    model(*args, **kwargs)
    assert model.seen["left"].device == device
    dop.disable_group_offload(model)
