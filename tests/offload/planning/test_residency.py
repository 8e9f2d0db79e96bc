"""What is kept beyond what the step's time speaks for, and how little of it has to be looked at to name a budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.planning.residency import FEW, STEPS, Keeper, _filled, keeper_of
from diffusers_offload_plus.offload.planning.search import Frontier
from tests.support.models import Stack, noise, seeded
from tests.support.policies import settings

sizes = st.lists(st.integers(0, 6).map(lambda n: n * 10**9), min_size=1, max_size=12)


def filled_by_definition(nbytes: list[int], kept: frozenset[int], left: int) -> frozenset[int]:
    chosen, count = set(kept), len(nbytes)

    def farness(index: int) -> int:
        return min((min((index - other) % count, (other - index) % count) for other in chosen), default=count)

    while fitting := [index for index in range(count) if index not in chosen and nbytes[index] <= left]:
        far = max(fitting, key=lambda index: (farness(index), nbytes[index], -index))
        chosen.add(far)
        left -= nbytes[far]
    return frozenset(chosen)


@given(sizes, st.sets(st.integers(0, 11)), st.integers(0, 40 * 10**9))
def test_what_fills_the_room_comes_from_far(nbytes: list[int], kept: set[int], left: int) -> None:
    among = frozenset(index for index in kept if index < len(nbytes))
    assert _filled(nbytes, among, left) == filled_by_definition(nbytes, among, left)


def test_budgets_for_many_groups_are_named_without_looking_at_many() -> None:
    """Each group of a large model may have a budget named that keeps it; their searches share what they look at."""
    nbytes = [9_437_184 if index % 3 else 786_432 for index in range(520)]
    keeper, present = Keeper(nbytes, []), sum(nbytes) // 3
    step = -(-sum(nbytes) // STEPS)
    streamed = sorted(set(range(520)) - keeper.within(present)[0])
    assert len(streamed) > 200
    for index in streamed:
        budget = keeper.least_keeping(index, present)
        assert present < budget <= sum(nbytes) + step
        assert index in keeper.within(budget)[0]
        assert budget - step == present or index not in keeper.within(budget - step)[0]
    assert len(keeper._found) <= STEPS + 2


def test_of_few_groups_the_budget_is_named_to_the_byte() -> None:
    nbytes = [1000 + 37 * index for index in range(FEW)]
    keeper, present = Keeper(nbytes, []), sum(nbytes) // 2
    for index in sorted(set(range(FEW)) - keeper.within(present)[0])[:5]:
        budget = keeper.least_keeping(index, present)
        assert index in keeper.within(budget)[0]
        assert budget - 1 == present or index not in keeper.within(budget - 1)[0]


def test_models_alike_are_searched_once(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = Frontier._search
    monkeypatch.setattr(Frontier, "_search", lambda self: [searches.append(self), search(self)])
    keeper_of.cache_clear()
    for seed in (0, 1):
        model = seeded(Stack, seed)
        dop.enable_group_offload(model, device, **settings("half", model, device))
        model(noise(device))
        dop.disable_group_offload(model)
    assert len(searches) == 1
