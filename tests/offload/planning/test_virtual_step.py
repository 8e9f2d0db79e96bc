"""The engine's steps in virtual time beside what the step model predicts for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.planning.step_time import Bandwidth, step_seconds
from tests.support.meter import Meter
from tests.support.steps import stock_seconds
from tests.support.virtual import (
    UNIT,
    costs_of,
    engine_of,
    exact_speeds,
    limit_of,
    run,
    seconds_of,
    set_speed,
    settled,
    timed,
)

__all__ = ["exact_speeds"]

pytestmark = pytest.mark.usefixtures("exact_speeds")

WARM = 12  # passes until steps repeat
PERIOD = 12  # passes after which they do, all of a whole number of units of time


@dataclasses.dataclass(frozen=True)
class Case:
    groups: list[tuple[int, float]]
    part: float
    speed: Bandwidth

    @property
    def limit(self) -> int:
        """Part 0 is the least budget that works, 1 caches all."""
        sizes = [units for units, _ in self.groups]
        least = min(sum(sizes), 2 * max(sizes))
        return limit_of(least + self.part * (sum(sizes) - least))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = st.just(draw(st.integers(1, 12))) if draw(st.booleans()) else st.integers(1, 12)
    return Case(
        groups=draw(st.lists(st.tuples(sizes, st.integers(0, 12).map(float)), min_size=2, max_size=8)),
        part=draw(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 0.95])),
        speed=Bandwidth(UNIT * draw(st.sampled_from([0.25, 0.5, 1.0, 4.0])), draw(st.sampled_from([0.0, 0.5, 3.0]))),
    )


def predicted(model: Any, case: Case) -> float:
    """By the step model, for what the engine caches and the bytes that the others stream through."""
    plan = engine_of(model).plan
    cached = frozenset(index for index, group in enumerate(plan.groups) if group.residency.value == "cached")
    return step_seconds(costs_of(case.groups), cached, plan.stream_bytes, case.speed)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_a_step_takes_what_the_model_predicts_and_waits_are_what_it_takes_beyond_computing(
    device: torch.device, case: Case
) -> None:
    from tests.simulated import reset_stats, stats

    reset_stats()
    set_speed(case.speed)
    model = timed(case.groups)
    dop.enable_group_offload(model, device, vram_budget=case.limit)
    run(model, WARM)
    seconds = seconds_of(model, PERIOD)
    assert seconds == pytest.approx(predicted(model, case), rel=1e-9)
    assert engine_of(model).copy_engine.streaming <= engine_of(model).plan.stream_bytes
    engine_of(model).copy_engine.stall_timer.reset()
    total, stalls = 0.0, 0.0
    for _ in range(PERIOD // 3):
        total += 3 * seconds_of(model, 3)
        report = dop.offload_report(model).components[0]
        assert report.measured_passes == 3
        stalls += sum(3 * stall.seconds for stall in report.stalls)
        engine_of(model).copy_engine.stall_timer.reset()
    assert stalls == pytest.approx(total - PERIOD * sum(computing for _, computing in case.groups), abs=1e-9 * total)
    dop.disable_group_offload(model)
    assert stats().races == 0, stats().race_log


@pytest.mark.parametrize(
    ("group", "units", "streamed", "seconds"),
    [((1, 2.0), 3, 7, 16), ((2, 1.0), 6, 14, 14)],
    ids=["computing", "copying"],
)
def test_a_step_costs_what_bounds_it_alone(
    group: tuple[int, float], units: int, streamed: int, seconds: int, device: torch.device, meter: Meter
) -> None:
    model = timed([group] * 8)
    dop.enable_group_offload(model, device, vram_budget=limit_of(units))
    assert engine_of(model).plan.streamed_bytes == streamed * UNIT
    run(model, WARM)
    assert seconds_of(model, PERIOD) == seconds


def test_in_a_longer_loop_the_host_waits_for_nothing_while_all_of_it_is_measured(
    device: torch.device, meter: Meter
) -> None:
    from tests.simulated import host_seconds, reset_stats, stats

    model = timed([(2, 1.0)] * 8)
    dop.enable_group_offload(model, device, vram_budget=limit_of(6))
    run(model, 2)
    engine_of(model).copy_engine.stall_timer.reset()
    reset_stats()
    before = host_seconds()
    run(model, 3)
    assert engine_of(model).copy_engine.stall_timer._begun == 3
    assert stats().host_syncs == 0
    assert host_seconds() == before, "the host has issued it all at once"
    torch.sim.synchronize()
    assert dop.offload_report(model).components[0].measured_passes == 3


def test_without_a_budget_a_step_is_stock_s_at_best(device: torch.device, meter: Meter) -> None:
    groups = [(6, 3.0), (4, 2.0), (5, 1.0), (1, 4.0)]
    model = timed(groups)
    dop.enable_group_offload(model, device, use_stream=True)
    run(model, 3)
    assert seconds_of(model, 4) == stock_seconds(costs_of(groups), Bandwidth(UNIT))


def test_more_memory_is_not_slower_where_it_matters(device: torch.device, meter: Meter) -> None:
    groups = [(4, 2.0)] * 12
    seconds = []
    for units in (8, 12, 16, 24, 32, 40, 44, 48):
        model = timed(groups)
        dop.enable_group_offload(model, device, vram_budget=limit_of(units))
        settled(model)
        seconds.append(seconds_of(model, PERIOD))
        dop.disable_group_offload(model)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == 24
