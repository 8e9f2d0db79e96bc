"""Runs the twins: a few hundred sequences in ``make test``, thousands in ``make soak``."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.meter import meter_for
from tests.twin.machine import COVERAGE, LEVELS, OPERATIONS, TIERS, Twins

SEQUENCES = int(os.environ.get("OFFLOAD_PLUS_SEQUENCES", "200"))
LENGTH = 30


def table() -> str:
    """How often each operation ran under each tier and level."""
    cells = [(tier, level) for tier in TIERS for level in LEVELS]
    lines = [f"{'':14}" + "".join(f"{tier + ' ' + level.removesuffix('_level'):>18}" for tier, level in cells)]
    lines += [f"{op:14}" + "".join(f"{COVERAGE[op, *cell]:>18}" for cell in cells) for op in OPERATIONS]
    return "\n".join(lines)


@pytest.mark.timeout(0)
def test_the_offloaded_model_is_its_unoffloaded_twin(device: torch.device) -> None:
    Twins.device = device
    Twins.meter = meter_for(device)
    run_state_machine_as_test(
        Twins,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=LENGTH,
            deadline=None,
            derandomize=SEQUENCES <= 200,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            report_multiple_bugs=False,
        ),
    )
    print(table())
    empty = [
        (op, tier, level) for op in OPERATIONS for tier in TIERS for level in LEVELS if not COVERAGE[op, tier, level]
    ]
    assert not empty, f"never tried: {empty}"
