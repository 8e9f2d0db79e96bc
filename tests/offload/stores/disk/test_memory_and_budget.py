"""Memory is really given back, and the budget holds."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from tests.offload.stores.disk import children, forked
from tests.offload.stores.disk.setup import assert_right, assert_state, offload, twin_of
from tests.support.models import Stack, nbytes, seeded

MIB = 1 << 20


@pytest.mark.parametrize(("width", "depth"), [(512, 64), (2048, 4)])
def test_anonymous_memory_is_given_back(width: int, depth: int, tmp_path: Path) -> None:
    """Stock frees none for weights of up to 512 x 512: the allocator keeps such blocks."""
    took = forked.run(children.anonymous_memory, str(tmp_path), width, depth, 4).expect()
    assert took["before"] - took["after"] >= 0.95 * took["model"], took
    assert took["peak"] - took["after"] < 8 * MIB, took


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"use_stream": False}])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_the_budget_holds(
    level: str, share: float, options: dict[str, Any], device: torch.device, tmp_path: Path
) -> None:
    """Pinned, pageable and staging bytes, after set-up and after passes."""
    model = seeded(lambda: Stack(12))
    twin = twin_of(model, device)
    largest = 2 * 32 * 64 * 4 + 1024 if level == "block_level" else 32 * 64 * 4 + 256
    budget = int(share * nbytes(model)) + 4 * largest
    offload(model, device, tmp_path, host_budget=budget, offload_type=level, **options)
    for _ in range(3):
        assert_right(model, twin, device)
        assert dop.offload_report(model).components[0].host_bytes <= budget
    assert_state(model, twin)
    dop.disable_group_offload(model)


def test_weights_that_change_in_a_budget_stay_on_their_tier(device: torch.device, tmp_path: Path) -> None:
    model = seeded(lambda: Stack(12))
    budget = nbytes(model) // 2
    offload(model, device, tmp_path, host_budget=budget)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    twin = seeded(lambda: Stack(12)).to(device)
    assert_right(model, twin, device)
    report = dop.offload_report(model).components[0]
    assert report.disk_bytes > 0
    assert report.host_bytes <= budget
    dop.disable_group_offload(model)


def readers() -> set[threading.Thread]:
    """The reader threads of all models there are."""
    return {t for t in threading.enumerate() if t.name.startswith("offload-plus-reader") and t.is_alive()}


def test_the_reader_thread_ends(where: torch.device, tmp_path: Path) -> None:
    before = readers()
    model = seeded(Stack)
    offload(model, where, tmp_path)
    assert_right(model, twin_of(seeded(Stack), where), where)
    assert len(readers() - before) == 1
    dop.disable_group_offload(model)
    assert readers() <= before


def test_pages_written_and_advised_at_random_keep_what_was_written(tmp_path: Path) -> None:
    for seed in range(3):
        forked.run(children.random_edits, str(tmp_path), seed).expect()
