"""A device without memory in the middle of a pass: what is not needed goes first, and nothing is lost."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from tests.support.meter import Meter
from tests.support.models import WIDTH, Stack, assert_same, nbytes, noise, seeded
from tests.support.policies import settings
from tests.support.virtual import engine_of

POLICIES = ["block", "leaf-stream", "block-record", "tight", "half", "whole", "disk-leaf-stream"]


@contextmanager
def room_for(nbytes: int, device: torch.device) -> Iterator[None]:
    """Leave so many bytes more than what is on the device now."""
    from tests.simulated import capacity, stats

    with capacity(stats().live + nbytes):
        yield


def first_that_works(model: Any, x: torch.Tensor, device: torch.device) -> tuple[int, torch.Tensor]:
    """The smallest room, in steps of 2 KiB, in which a pass runs; all smaller ones raise torch's own error."""
    for room in range(0, 4 * nbytes(model), 2048):
        with room_for(room, device), torch.no_grad():
            try:
                return room, model(x)
            except torch.OutOfMemoryError as error:
                notes = error.__notes__
        assert any("Nothing is lost" in note and "Stack" in note for note in notes)
    raise AssertionError("no room was large enough")


@pytest.mark.parametrize("policy", POLICIES)
def test_passes_in_little_memory(policy: str, device: torch.device, meter: Meter) -> None:
    """Whatever the room, a pass is right or raises; and it needs no more room than the plan says."""
    model: Any = seeded(lambda: Stack(depth=6))
    twin, x = copy.deepcopy(model).to(device), noise(device)
    with torch.no_grad():
        want = twin(x)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for number in range(3):
        room, output = first_that_works(model, x, device)
        assert_same(output, want)
        if not number:
            assert room <= engine_of(model).plan.device_bound + 16 * 1024
        del output
        with torch.no_grad():
            assert_same(model(x), want)
            for one in (model, twin):
                one.blocks[number].up.weight.mul_(0.5)
            want = twin(x)
    dop.disable_group_offload(model)
    assert_same(list(model.state_dict().values()), list(twin.state_dict().values()))


def test_other_groups_make_room_for_the_one_that_runs(device: torch.device, meter: Meter) -> None:
    """The budget says that all may stay, the device does not: groups are evicted, and the pass goes on."""
    model: Any = seeded(lambda: Stack(depth=8))
    dop.enable_group_offload(model, device, **settings("whole", model, device))
    x, right = noise(device, 1, WIDTH), 0
    want = seeded(lambda: Stack(depth=8)).to(device)(x).detach()
    engine = engine_of(model)
    rooms = range(nbytes(model) // 2, nbytes(model) - 16 * 1024, 1024)
    for room in rooms:
        engine.forward_pass.evict_all()
        engine.budget.slabs.trim(1 << 30)
        with room_for(room, device), torch.no_grad(), contextlib.suppress(torch.OutOfMemoryError):
            assert_same(model(x), want)
            right += 1
    assert right > len(rooms) // 2, "in the others the memory that is left may be too little for activations"
    dop.disable_group_offload(model)


def test_the_note_names_a_budget_that_leaves_more(device: torch.device, meter: Meter) -> None:
    model: Any = seeded(lambda: Stack(depth=8))
    dop.enable_group_offload(model, device, **settings("whole", model, device))
    x = noise(device)

    def exhaust(*_: object) -> None:
        torch.empty(1 << 50, device=device)

    with torch.no_grad():
        model(x)
        handle = model.blocks[5].up.register_forward_pre_hook(exhaust)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            model(x)
        handle.remove()
    (note,) = caught.value.__notes__
    smaller = int(note.partition("`vram_budget=")[2].partition("`")[0])
    assert 0 < smaller < engine_of(model).budget.limit
    dop.disable_group_offload(model)
    dop.enable_group_offload(model, device, vram_budget=smaller)
    with torch.no_grad():
        assert_same(model(x), seeded(lambda: Stack(depth=8)).to(device)(x))


def test_auto_gives_back_what_other_programs_need(device: torch.device, meter: Meter) -> None:
    """The limit is looked at before each pass, and follows what others have taken."""
    from tests.simulated import capacity, stats

    model: Any = seeded(lambda: Stack(depth=12))
    twin, x = copy.deepcopy(model).to(device), noise(device, 64, WIDTH)
    with torch.no_grad():
        want = twin(x)
        with capacity(stats().live + 3 * nbytes(model)):
            dop.enable_group_offload(model, device, vram_budget="auto")
            for _ in range(3):
                assert_same(model(x), want)
            assert engine_of(model).plan.streamed_bytes == 0
            kept = engine_of(model).budget.used
        for part in (0.5, 0.3, 0.6):
            with capacity(stats().live - engine_of(model).budget.used + int((part + 0.6) * nbytes(model))):
                for _ in range(2):
                    assert_same(model(x), want)
                assert engine_of(model).budget.used < kept
    dop.disable_group_offload(model)
