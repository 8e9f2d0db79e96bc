"""What comes next is learned, also where passes of several kinds come in turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.runtime.prefetch import KINDS, UsageOrder
from tests.offload.memory.test_budgets import engine_of, limit_for
from tests.support.meter import Meter
from tests.support.models import Block, noise, seeded

orders = st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True).map(tuple)


def missed(schedule: UsageOrder, order: tuple[int, ...]) -> list[int]:
    """A pass; the groups that were not expected next when they were used."""
    schedule.begin()
    found = []
    for group in order:
        if schedule.peek(0) != group:
            found.append(group)
        schedule.use(group)
    schedule.end()
    return found


@given(st.lists(orders, min_size=1, max_size=KINDS, unique=True))
def test_kinds_of_passes_that_come_in_turn_are_all_expected(kinds: list[tuple[int, ...]]) -> None:
    schedule = UsageOrder()
    for _ in range(2):
        for order in kinds:
            missed(schedule, order)
    for order in kinds:
        assert missed(schedule, order) == []


@given(st.lists(orders, min_size=1, max_size=KINDS, unique=True))
def test_the_next_pass_is_expected_while_this_one_runs(kinds: list[tuple[int, ...]]) -> None:
    schedule = UsageOrder()
    for _ in range(2):
        for order in kinds:
            missed(schedule, order)
    for order, following in zip(kinds, [*kinds[1:], kinds[0]], strict=True):
        schedule.begin()
        for group in order:
            schedule.use(group)
        assert schedule.peek(0) is None
        assert [schedule.peek(place, wrap=True) for place in range(len(following) + 1)] == [*following, None]
        schedule.end()


@given(orders, orders)
def test_a_change_costs_one_pass(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    schedule = UsageOrder()
    for _ in range(3):
        missed(schedule, before)
    missed(schedule, after)
    missed(schedule, after)
    assert missed(schedule, after) == []


def test_a_known_kind_is_recognised_by_how_it_begins() -> None:
    """A cache that finds after the first block whether the others are needed."""
    schedule = UsageOrder()
    whole, cached = (0, 1, 2, 3, 4), (0, 7, 8)
    for order in (whole, whole, cached, whole, whole):
        missed(schedule, order)
    assert missed(schedule, cached) == [7]
    assert missed(schedule, whole) == []


def test_a_skipped_a_repeated_and_an_unknown_group_cost_one_each() -> None:
    schedule = UsageOrder()
    missed(schedule, (0, 1, 2, 3, 4, 5))
    assert missed(schedule, (0, 1, 3, 4, 4, 9, 5)) == [3, 4, 9]


def test_no_more_kinds_are_remembered_than_matter() -> None:
    schedule = UsageOrder()
    for number in range(3 * KINDS):
        missed(schedule, (number, number + 1))
    assert len(schedule._followed) <= KINDS


def test_a_pass_that_did_not_end_is_forgotten() -> None:
    schedule = UsageOrder()
    missed(schedule, (0, 1, 2))
    schedule.begin()
    schedule.use(5)
    assert missed(schedule, (0, 1, 2)) == []


class InTurn(nn.Module):
    """Blocks of which every other pass skips some, as caches of attention do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(10))
        self.forward_pass = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forward_pass += 1
        for number, block in enumerate(self.blocks):
            if self.forward_pass % 2 or number % 3 == 0:
                x = block(x)
        return x


@torch.no_grad()
@pytest.mark.parametrize("part", [None, 0.0, 0.3])
def test_what_every_other_pass_skips_is_not_copied_for_it(
    part: float | None, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = seeded(InTurn), noise(device)
    if part is None:
        dop.enable_group_offload(model, device, use_stream=True)
    else:
        dop.enable_group_offload(model, device, vram_budget=limit_for(model, part, device, monkeypatch))
    engine = engine_of(model)
    for _ in range(6):
        model(x)
    blocks = [int(group.spec.name.split(".")[1]) for group in engine.groups if not group.cached]
    before = engine.copy_engine.copies
    for _ in range(6):
        model(x)
    assert engine.copy_engine.copies - before == 3 * (len(blocks) + sum(number % 3 == 0 for number in blocks))


class Skipping(nn.Module):
    """Skips blocks as it is told; the last one needs two groups, for it shares a weight with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.blocks[3].up.weight = self.blocks[0].up.weight

    def forward(self, x: torch.Tensor, skip: tuple[int, ...] = ()) -> torch.Tensor:
        for number, block in enumerate(self.blocks):
            if number not in skip:
                x = block(x)
        return x


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"use_stream": True}, {"use_stream": True, "record_stream": True}])
def test_what_was_brought_for_nothing_goes(settings: dict[str, bool], device: torch.device, meter: Meter) -> None:
    model = seeded(Skipping)
    dop.enable_group_offload(model, device, **settings)
    for skip in ((), (0, 1), (0, 1, 2), (), (1,), (0, 2)):
        model(noise(device), skip)
        assert engine_of(model).usage.live == 0, f"after skipping {skip}"
    dop.disable_group_offload(model)
