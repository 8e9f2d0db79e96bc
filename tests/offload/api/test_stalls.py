"""Stall attribution: which group made computing wait, for how long to the last digit, and what removes it."""

from __future__ import annotations

import copy
import math
import re
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.formatting import parse_bytes
from diffusers_offload_plus.offload.stores.disk.slab import DiskSlab
from diffusers_offload_plus.offload.transfer import reader
from diffusers_offload_plus.offload.transfer import timing as waits
from tests.support.meter import Meter
from tests.support.policies import DIRECTORY
from tests.support.virtual import UNIT, engine_of, exact_speeds, limit_of, run, seconds_of, settled, timed

__all__ = ["exact_speeds"]

pytestmark = pytest.mark.usefixtures("exact_speeds")

Groups = list[tuple[int, float]]


def named(report: Any) -> dict[str, tuple[float, float, str]]:
    """Group, seconds a pass, worst, bottleneck."""
    return {s.group: (s.seconds, s.worst, s.bottleneck) for s in report.components[0].stalls}


def remedy_of(report: Any, group: str) -> str:
    (remedy,) = {s.remedy for s in report.components[0].stalls if s.group == group}
    return str(remedy)


def figure(remedy: str, argument: str) -> int:
    """The size that a remedy names, as it would be typed."""
    match = re.search(rf"`{argument}` (?:of about ([^ ]+ \w+)|\(about ([^ ]+ \w+) more\))", remedy)
    assert match is not None, remedy
    return parse_bytes(argument, match[1] or match[2])


def test_the_group_that_travels_too_long_is_named_with_the_seconds_it_cost(device: torch.device, meter: Meter) -> None:
    model = timed([(2, 4.0), (2, 4.0), (9, 4.0), (2, 4.0), (2, 4.0)])
    dop.enable_group_offload(model, device, use_stream=True)
    report = settled(model)
    # The copy of each begins with the computing of the one before; nobody computes before the first.
    assert named(report) == {"2": (5.0, 5.0, "host to device"), "0": (2.0, 2.0, "host to device")}
    assert [s.group for s in report.components[0].stalls] == ["2", "0"], "most time lost first"
    (stall, _) = report.components[0].stalls
    assert (stall.nbytes, stall.passes, report.components[0].measured_passes) == (9 * UNIT, 2, 2)
    assert seconds_of(model) == 20 + 5 + 2


def test_with_fast_copies_nobody_is_named(device: torch.device, meter: Meter) -> None:
    from tests.simulated import set_link

    set_link(bandwidth=9 * UNIT)
    model = timed([(2, 4.0), (9, 4.0), (2, 4.0), (9, 4.0)])
    dop.enable_group_offload(model, device, vram_budget=limit_of(20))
    report = settled(model)
    assert report.components[0].measured_passes == 2
    assert report.components[0].streamed_bytes == 20 * UNIT
    assert report.components[0].stalls == ()
    assert "waited" not in str(report)
    assert seconds_of(model, 4) == 16


def test_the_worst_pass_is_told_from_the_mean(device: torch.device, meter: Meter) -> None:
    from tests.simulated import set_link

    model = timed([(1, 4.0), (4, 4.0)])
    dop.enable_group_offload(model, device, use_stream=True)
    run(model)
    for bandwidth in (UNIT / 4, UNIT / 2):
        set_link(bandwidth=bandwidth)
        run(model)
    torch.sim.synchronize()
    assert named(dop.offload_report(model))["1"] == (8.0, 12.0, "host to device")


def test_being_early_for_one_use_makes_up_for_no_other(device: torch.device, meter: Meter) -> None:
    twice, between = timed([(6, 1.0), (1, 20.0)])
    model = nn.Sequential(twice, between, twice)
    dop.enable_group_offload(model, device, use_stream=True)
    assert named(settled(model)) == {"0": (6.0, 6.0, "host to device")}


@pytest.mark.parametrize("policy", ["plain", "stream", "budget"])
def test_following_the_remedy_removes_the_stall(policy: str, device: torch.device, meter: Meter) -> None:
    model = timed([(2, 1.0), (6, 1.0), (2, 8.0), (5, 8.0)])
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "stream": {"use_stream": True},
        "budget": {"vram_budget": limit_of(12)},
    }
    dop.enable_group_offload(model, device, **settings[policy])
    report = settled(model)
    stalled = named(report)
    assert stalled
    for group in stalled:
        remedy = remedy_of(report, group)
        if policy == "plain" and group != "0":
            assert remedy == "`use_stream=True` copies it while the group before it computes"
            change: dict[str, Any] = {"use_stream": True}
        else:
            present = settings[policy].get("vram_budget", 0)
            change = {"vram_budget": present + figure(remedy, "vram_budget")}
        better = copy.deepcopy(model)
        dop.enable_group_offload(better, device, **change)
        seconds = named(settled(better)).get(group, (0.0,))[0]
        if "use_stream" in change:
            assert seconds == {"1": 5.0, "2": 1.0, "3": 0.0}[group] < stalled[group][0]
        else:
            assert seconds == 0
            assert group in cached_by(better)
            assert change["vram_budget"] <= 1.1 * limit_of(15), "no more than the whole model takes"
        dop.disable_group_offload(better)


def cached_by(model: nn.Module) -> list[str]:
    return [group.name for group in engine_of(model).plan.groups if group.residency.value == "cached"]


class Two(nn.Module):
    """A block of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = timed([(2, 1.0), (3, 1.0)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.b(self.a(x))
        return output


def test_at_leaf_level_the_remedy_names_the_cut_it_holds_for(device: torch.device, meter: Meter) -> None:
    model = nn.Sequential(*(Two() for _ in range(4)))
    limit = limit_of(6)
    dop.enable_group_offload(model, device, vram_budget=limit)
    assert engine_of(model).plan.groups[0].name == "0.a", "blocks are too large for this budget"
    report = settled(model)
    group = report.components[0].stalls[0].group
    remedy = remedy_of(report, group)
    assert "with `offload_type='leaf_level'` caches it" in remedy
    better = limit + figure(remedy, "vram_budget")
    dop.enable_group_offload(model, device, vram_budget=better, offload_type="leaf_level")
    assert group in cached_by(model)
    assert group not in named(settled(model))


def test_a_group_that_others_displace(device: torch.device, meter: Meter) -> None:
    groups = [(3, 1.0), (3, 1.0), (3, 1.0), (6, 1.0)]
    pipeline = types.SimpleNamespace(components={"one": timed(groups), "other": timed(groups)})

    def report(limit: int) -> Any:
        dop.enable_group_offload(pipeline, device, vram_budget=limit)
        for _ in range(5):  # the seventeenth pass of each is measured, and comes after those of the other
            for model in pipeline.components.values():
                run(model, 4)
        torch.sim.synchronize()
        return dop.offload_report(pipeline)

    for component in report(limit_of(16)).components:
        (stall,) = component.stalls
        # The last to come: those before it came while what gave way for it was compared.
        assert (stall.group, stall.worst, stall.passes) == ("3", 3.0, 4)
        assert "caches it besides the other components" in stall.remedy
    more = figure(stall.remedy, "vram_budget")
    assert [c.stalls for c in report(limit_of(16) + more).components] == [(), ()]
    dop.disable_group_offload(pipeline)


def test_a_blocking_copy_keeps_computing_waiting_for_as_long_as_it_takes(device: torch.device, meter: Meter) -> None:
    model = timed([(2, 4.0), (3, 1.0)])
    dop.enable_group_offload(model, device)
    assert named(settled(model)) == {"1": (3.0, 3.0, "host to device"), "0": (2.0, 2.0, "host to device")}


def test_the_first_pass_counts_as_long_as_there_is_no_other(device: torch.device, meter: Meter) -> None:
    model = timed([(2, 4.0), (3, 4.0), (4, 4.0)])
    dop.enable_group_offload(model, device, use_stream=True)
    run(model)
    torch.sim.synchronize()
    report = dop.offload_report(model)
    assert {name: entry[0] for name, entry in named(report).items()} == {"0": 2.0, "1": 3.0, "2": 4.0}
    assert remedy_of(report, "2") == "none needed: the order of use is known after the first pass"
    run(model)
    torch.sim.synchronize()
    assert {name: entry[0] for name, entry in named(dop.offload_report(model)).items()} == {"0": 2.0}


def test_a_pass_that_fails_is_not_counted(device: torch.device, meter: Meter) -> None:
    model = timed([(2, 1.0), (3, 1.0)])
    dop.enable_group_offload(model, device, use_stream=True)
    run(model, 2)

    def fail(*_: object) -> None:
        raise KeyError

    handle = model[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        run(model)
    handle.remove()
    torch.sim.synchronize()
    assert dop.offload_report(model).components[0].measured_passes == 1


def test_measuring_is_bounded_and_costs_no_wait(
    device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.simulated import reset_stats, stats

    model = timed([(2, 1.0)] * 6)
    dop.enable_group_offload(model, device, vram_budget=limit_of(6))
    made = []
    event = torch.Event
    monkeypatch.setattr(torch, "Event", lambda *args, **kwargs: made.append(1) or event(*args, **kwargs))
    reset_stats()
    run(model, 100)
    assert stats().host_syncs == 0
    assert stats().races == 0, stats().race_log
    count = len(made)
    assert 0 < count <= 2 * 6 * (waits.PENDING + 1)
    torch.sim.synchronize()
    passes = dop.offload_report(model).components[0].measured_passes
    assert passes == waits.FIRST + 99 // waits.EVERY
    run(model, 100)
    assert len(made) == count, "events are used again"


def test_events_that_have_not_happened_are_left_for_later(device: torch.device, meter: Meter) -> None:
    model = timed([(2, 4.0), (3, 1.0)])
    dop.enable_group_offload(model, device, use_stream=True)
    run(model, 2)
    torch.sim.synchronize()
    assert dop.offload_report(model).components[0].measured_passes == 1
    run(model)
    side, host = torch.Stream(device=device), torch.ones(4).pin_memory()
    with side:
        late = torch.empty(4, device=device).copy_(host, non_blocking=True)
        engine_of(model).copy_engine.stall_timer._pending[-1].waits[-1].end.record(side)
    assert dop.offload_report(model).components[0].measured_passes == 1
    side.synchronize()
    assert dop.offload_report(model).components[0].measured_passes == 2
    del late


# Disk: with infinitely fast copies, and nothing to compute, all that takes time is reading


SLOW = 3 * UNIT


@pytest.fixture
def slow_disk(exact_speeds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a group of three units takes the host 32 seconds, which begin when somebody waits for it."""
    from tests.simulated import host_busy_for, host_seconds, set_link

    wanted = threading.Event()
    finish = reader.Reading.finish

    def waiting(reading: reader.Reading) -> Any:
        if reading._what.startswith(f"{SLOW} bytes"):
            wanted.set()
        return finish(reading)

    def slowed(read: Callable[..., Any]) -> Callable[..., Any]:
        def slow_read(slab: DiskSlab, *args: Any) -> Any:
            if slab.nbytes == SLOW:
                assert wanted.wait(60)
                wanted.clear()
                host_busy_for(32)
            return read(slab, *args)

        return slow_read

    set_link(bandwidth=math.inf)
    monkeypatch.setattr(reader.Reading, "finish", waiting)
    monkeypatch.setattr(DiskSlab, "read_into", slowed(DiskSlab.read_into))
    monkeypatch.setattr(DiskSlab, "populate", slowed(DiskSlab.populate))
    monkeypatch.setattr(waits, "time", types.SimpleNamespace(perf_counter=host_seconds))


@pytest.mark.parametrize("where", ["cpu", "sim"])
@pytest.mark.usefixtures("slow_disk")
def test_bytes_that_had_not_been_read_are_the_disk_s(where: str, meter: Meter) -> None:
    groups = [(2, 0.0), (2, 0.0), (3, 0.0), (2, 0.0)]
    model = timed(groups)
    dop.enable_group_offload(model, where, use_stream=where == "sim", offload_to_disk_path=DIRECTORY)
    report = settled(model, device=where)
    assert named(report) == {"2": (32.0, 32.0, "disk")}
    remedy = remedy_of(report, "2")
    assert remedy.startswith("a faster disk; a `host_budget` of about ")
    needed = figure(remedy, "host_budget")
    dop.enable_group_offload(
        model, where, use_stream=where == "sim", offload_to_disk_path=DIRECTORY, host_budget=needed
    )
    assert tier_of(model, "2") in ("host", "pinned host")
    assert "2" not in named(settled(model, device=where))
    dop.disable_group_offload(model)


def tier_of(model: nn.Module, name: str) -> str:
    """On a CPU, groups in memory are used where they are, and are none of the engine's."""
    return {g.spec.name: g.tier for g in engine_of(model).groups}.get(name, "host")


def test_bytes_that_had_been_read_and_were_on_their_way_are_the_copy_engine_s(
    device: torch.device, meter: Meter
) -> None:
    model = timed([(2, 4.0), (2, 4.0), (9, 4.0), (2, 4.0)])
    dop.enable_group_offload(model, device, use_stream=True, offload_to_disk_path=DIRECTORY)
    model[1].register_forward_hook(lambda *_: engine_of(model).copy_engine._reader.drain())
    (stall,) = (s for s in settled(model).components[0].stalls if s.group == "2")
    assert stall.bottleneck == "host to device"
    dop.disable_group_offload(model)
