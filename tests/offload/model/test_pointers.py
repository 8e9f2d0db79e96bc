"""Which tensors have been written, as far as version counters tell."""

from __future__ import annotations

import torch
from torch import nn

from diffusers_offload_plus.offload.model.pointers import Pointers
from tests.support.subclasses import Boxed, box


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
