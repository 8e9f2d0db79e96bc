"""Where tensors point, and which have been written, as far as version counters tell."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.model.pointers import Pointers
from diffusers_offload_plus.offload.model.tensors import plain_tensors
from tests.support.meter import Meter
from tests.support.models import assert_same, noise, seeded
from tests.support.policies import settings
from tests.support.subclasses import Boxed, box
from tests.zoo.quantized import QUANTISERS


def test_tensors_whose_writes_are_not_counted_may_have_been_written() -> None:
    with torch.inference_mode():
        uncounted = torch.ones(2)
    pointers = Pointers([torch.ones(2), uncounted], [torch.zeros(2), torch.zeros(2)])
    assert not pointers.tracked
    assert pointers.changed_since(pointers.versions()) == {1}


def test_a_write_to_the_last_inner_tensor_is_one_to_the_whole() -> None:
    tensors = [nn.Parameter(box(torch.ones(2, 2)), requires_grad=False) for _ in range(3)]
    values = [box(torch.zeros(2, 2)) for _ in tensors]
    pointers = Pointers(tensors, values)
    pointers.point()
    before = pointers.versions()
    assert pointers.changed_since(before) == set()
    middle: Boxed = values[1]
    assert middle.shift is not None
    middle.shift.add_(1)
    assert pointers.changed_since(before) == {1}
    assert not pointers.are_unwritten(before)


@pytest.mark.parametrize("policy", ["block", "leaf-stream", "block-record", "half", "disk"])
@pytest.mark.parametrize("kind", ["plain", *QUANTISERS])
def test_weights_on_the_device_begin_where_the_allocator_would_put_them(
    kind: str, policy: str, device: torch.device, meter: Meter
) -> None:
    """Kernels are chosen by the alignment of pointers. The simulated device's round differently below 256."""
    seen: set[int] = set()

    class Looking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for parameter in self.parameters():
                seen.update(t.data_ptr() % 512 for _, t in plain_tensors(parameter))
            return super().forward(x)

    model = seeded(lambda: nn.Sequential(*(nn.Sequential(Looking(64, 48), Looking(48, 64)) for _ in range(3))))
    if kind != "plain":
        QUANTISERS[kind](model)
    want = copy.deepcopy(model).to(device)(noise(device, 2, 64)).detach()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(noise(device, 2, 64)), want)
    assert seen == {0}
    dop.disable_group_offload(model)
