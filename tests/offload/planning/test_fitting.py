"""Blocks or layers: what a budget cuts a model into."""

from __future__ import annotations

import pytest
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.formatting import format_bytes, parse_bytes, round_up
from diffusers_offload_plus.offload.planning.fitting import streams_well


class Block(nn.Module):
    """Two layers of 64 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(128, 128, bias=False) for _ in range(2))


def stack(count: int) -> nn.Module:
    model = nn.Module()
    model.blocks = nn.ModuleList(Block() for _ in range(count))
    return model.to("meta")


@pytest.mark.parametrize(
    ("count", "part", "cut"),
    [(64, 0.25, "leaf_level"), (64, 0.75, "block_level"), (8, 0.75, "leaf_level"), (8, 1.1, "block_level")],
)
def test_blocks_are_cut_into_layers_where_their_double_buffer_takes_much_of_a_budget(
    count: int, part: float, cut: str
) -> None:
    whole = count * 2 * 65536
    plan = dop.plan_group_offload(stack(count), vram_budget=int(part * whole)).components[0]
    assert plan.cut == cut
    held_back = plan.bound - plan.cached_bytes
    assert held_back <= max(whole // 16, 3 * 65536)


def test_what_suits() -> None:
    assert streams_well(100, 50, 100)
    assert not streams_well(100, 50, 99)
    assert streams_well(10_000, 50, 800)
    assert not streams_well(10_000, 50, 799)


@pytest.mark.parametrize("nbytes", [0, 1, 1023, 1024, 1025, 123_456, 10**6 + 1, 5 * 2**30 + 1, 2**50 + 1])
def test_sizes_rounded_up_are_said_in_full(nbytes: int) -> None:
    size = round_up(nbytes)
    assert nbytes <= size <= max(nbytes * 1.1, nbytes + 1)
    assert abs(parse_bytes("size", format_bytes(size)) - size) <= 1
