"""Tests of the simulated accelerator itself: order, execution, counters and devices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.simulated import DEVICE, Copy, build, capacity, logged_copies, register, reset_stats, stats

from .stream_programs import PROGRAMS, N, Program, Streams, synchronize_all


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.run.__name__)
def test_stream_program(program: Program) -> None:
    streams = Streams()
    program.run(streams)
    report = stats()  # before the buffers are freed, which some programs do not wait for
    if program.race is None:
        assert report.race_log == ()
        assert report.races == 0
    else:
        assert report.races > 0
        assert any(program.race in sentence for sentence in report.race_log), report.race_log


def test_a_race_is_found_where_the_stale_bytes_are_the_right_ones() -> None:
    s = Streams()
    s.upload(s.a)
    with s.a:
        s.buffer.add_(0)  # a kernel runs at once, and the queued copy before it
    assert s.buffer.sum().item() == N
    assert stats().races > 0


def test_each_offending_access_is_one_race() -> None:
    s = Streams()
    s.upload(s.a)
    s.buffer.sum()
    assert stats().races == 1
    s.buffer[:8].sum()
    assert stats().races == 2
    s.main.wait_stream(s.a)
    s.buffer.sum()
    assert stats().races == 2


def test_the_race_log_is_bounded() -> None:
    s = Streams()
    s.upload(s.a)
    for _ in range(150):
        s.buffer.sum()
    assert stats().races == 150
    assert len(stats().race_log) == 100


def test_threads_have_their_own_current_stream() -> None:
    side = torch.Stream(device="sim")
    seen: list[int] = []
    with side:
        thread = threading.Thread(target=lambda: seen.append(torch.sim.current_stream().stream_id))
        thread.start()
        thread.join()
    assert seen == [0]


# When things run, and what is read too early


def test_fresh_and_queued_memory_is_poison() -> None:
    s = Streams()
    assert torch.empty(4, device="sim").isnan().all()
    s.upload(s.a)
    assert s.buffer.isnan().all()
    s.a.synchronize()
    assert s.buffer.sum().item() == N


def test_a_queued_download_poisons_its_destination_until_it_runs() -> None:
    s = Streams()
    with s.a:
        s.host.copy_(s.buffer, non_blocking=True)
    assert s.host.isnan().all()
    s.a.synchronize()
    assert s.host.sum().item() == 0


def test_a_download_on_the_default_stream_is_deferred_too() -> None:
    source = torch.ones(N, device="sim")
    result = source.to("cpu", non_blocking=True)
    assert result.is_pinned()
    assert result.isnan().all()
    torch.sim.synchronize()
    assert result.sum().item() == N


def test_a_queued_copy_of_a_freed_source_copies_poison() -> None:
    s = Streams()
    s.upload(s.a)
    del s.host
    s.a.synchronize()
    assert s.buffer.isnan().all()


def test_an_event_is_complete_only_after_its_stream_ran() -> None:
    s = Streams()
    assert s.a.record_event().query()
    for half in s.buffer.chunk(2):
        with s.a:
            half.copy_(s.host[: N // 2], non_blocking=True)
    event = s.a.record_event()
    assert [event.query() for _ in range(3)] == [False, False, True]
    assert s.a.query()


def test_an_event_never_recorded_is_complete_and_holds_nobody() -> None:
    event = torch.Event(device="sim")
    assert event.query()
    event.synchronize()


# Counters


def test_bytes_and_copies_are_exact() -> None:
    before = stats().live
    weight = torch.ones(10, 10)
    on_device = weight.to("sim")
    assert stats()[:5] == (before + 400, before + 400, 400, 0, 1)
    on_device.cpu()
    (on_device @ on_device).relu_()
    assert stats().d2h == 400
    assert stats().copies == 2
    on_device.clone()
    assert stats().copies == 3
    del on_device
    assert stats().live == before
    assert stats().peak == before + 800
    reset_stats()
    assert stats()[:5] == (before, before, 0, 0, 0)


def test_pinned_bytes() -> None:
    before = stats().pinned
    first, second = torch.ones(100).pin_memory(), torch.empty(50, pin_memory=True)
    assert first[10:].is_pinned()
    assert second.is_pinned()
    assert not torch.ones(1).is_pinned()
    assert stats().pinned - before == 600
    del first
    assert stats().pinned - before == 200
    assert stats().peak_pinned - before == 600


def test_usage_is_counted_by_device() -> None:
    before, before_on_second = (usage.live for usage in stats().devices)
    first, second = torch.ones(1, device="sim"), torch.ones(2, device="sim:1")
    assert torch.sim.memory_allocated(first.device) == before + 4
    assert torch.accelerator.memory_allocated(second.device) == before_on_second + 8
    assert stats().live == before + before_on_second + 12
    del second
    assert torch.sim.max_memory_allocated(1) == before_on_second + 8
    torch.sim.reset_peak_memory_stats(1)
    assert torch.sim.max_memory_allocated(1) == before_on_second


def test_copies_can_be_logged() -> None:
    s = Streams()
    with logged_copies() as log:
        s.upload(s.a)
        s.buffer.cpu()
        s.buffer.clone()
    s.upload(s.a)
    assert log == [Copy("h2d", 4 * N, s.a.stream_id), Copy("d2h", 4 * N, 0), Copy("d2d", 4 * N, 0)]


def test_capacity_is_enforced() -> None:
    total = torch.sim.memory_allocated(0) + 1000
    with capacity(total):
        kept = torch.empty(200, device="sim")
        assert torch.sim.mem_get_info() == (200, total)
        with pytest.raises(torch.OutOfMemoryError, match="sim:0 is out of memory: tried to allocate 400 bytes"):
            torch.empty(100, device="sim")
        torch.empty(100, device="sim:1")
        del kept
        torch.empty(100, device="sim")


HOST_SYNCS: dict[str, tuple[int, Callable[[Streams], object]]] = {
    "stream.synchronize": (1, lambda s: s.a.synchronize()),
    "event.synchronize": (1, lambda s: s.a.record_event().synchronize()),
    "device synchronize": (1, lambda s: torch.accelerator.synchronize()),
    "item": (1, lambda s: s.buffer[0].item()),
    "bool": (1, lambda s: bool(s.buffer[0] > 0)),
    "equal": (1, lambda s: torch.equal(s.buffer, s.buffer)),
    "nonzero": (1, lambda s: s.buffer.nonzero()),
    "blocking upload": (1, lambda s: s.host.to("sim")),
    "pageable upload": (1, lambda s: torch.ones(3).to("sim", non_blocking=True)),
    "converting upload": (1, lambda s: s.buffer.copy_(s.host.double(), non_blocking=True)),
    "strided upload": (1, lambda s: s.buffer[::2].copy_(s.host[::2], non_blocking=True)),
    "blocking download": (1, lambda s: s.buffer.cpu()),
    "pageable download": (1, lambda s: torch.empty(N).copy_(s.buffer, non_blocking=True)),
    "pinned upload": (0, lambda s: s.buffer.copy_(s.host, non_blocking=True)),
    "pinned download": (0, lambda s: s.host.copy_(s.buffer, non_blocking=True)),
    "copy within the device": (0, lambda s: s.buffer.clone()),
    "copy between devices": (0, lambda s: s.buffer.to("sim:1")),
    "event.query": (0, lambda s: s.a.record_event().query()),
    "wait_stream": (0, lambda s: s.main.wait_stream(s.a)),
    "event.wait": (0, lambda s: s.a.record_event().wait(s.main)),
    "kernel": (0, lambda s: s.buffer.add_(1).sum()),
    "free": (0, lambda s: torch.empty(3, device="sim") is None),
}


@pytest.mark.parametrize("name", HOST_SYNCS)
def test_host_syncs(name: str) -> None:
    expected, operation = HOST_SYNCS[name]
    s = Streams()
    operation(s)
    assert stats().host_syncs == expected


# Devices


def test_two_devices() -> None:
    assert torch.accelerator.device_count() == torch.sim.device_count() == 2
    assert torch.accelerator.current_accelerator() == torch.device("sim")
    second = torch.ones(4, device="sim:1")
    assert (second + 1).device == torch.device("sim", 1)
    assert second.to("sim:0").add_(1).tolist() == [2] * 4
    assert torch.arange(5, device="sim:1").untyped_storage().device == torch.device("sim", 1)
    assert torch.UntypedStorage(4, device="sim:1").device == torch.device("sim", 1)
    with torch.device("sim:1"):
        assert torch.empty(2).device.index == 1
    with torch.sim.device(1):
        assert torch.empty(2, device="sim").device.index == 1
        assert torch.sim.current_device() == torch.accelerator.current_device_index() == 1
    with torch.accelerator.device_index(1):
        assert torch.sim.current_device() == 1
    assert torch.sim.current_device() == 0


def test_synchronizing_one_device_leaves_the_other() -> None:
    other = torch.Stream(device="sim:1")
    host, there = torch.ones(4).pin_memory(), torch.zeros(4, device="sim:1")
    synchronize_all()
    with other:
        there.copy_(host, non_blocking=True)
    torch.sim.synchronize(0)
    assert not other.query()
    torch.sim.synchronize(1)
    assert there.tolist() == [1] * 4


@pytest.mark.parametrize(
    "use",
    [
        lambda: torch.empty(2, device="sim:5"),
        lambda: torch.randn(2, device="sim:5"),
        lambda: torch.ones(2).to("sim:5"),
        lambda: torch.Stream(device="sim:5"),
        lambda: torch.sim.set_device(5),
        lambda: torch.sim.synchronize(5),
        lambda: torch.UntypedStorage(4, device="sim:5"),
        lambda: torch.Generator(device="sim:5"),
        lambda: torch.sim.memory_allocated(5),
        lambda: torch.sim.mem_get_info("sim:5"),
    ],
)
def test_a_device_that_does_not_exist(use: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="sim:5 does not exist"):
        use()


@pytest.mark.parametrize("other", ["cpu", "sim:1"])
@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: here.add_(there),
        lambda here, there: here @ there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: F.linear(here, there),
        lambda here, there: F.layer_norm(here, (2,), there[0]),
        lambda here, there: F.conv2d(here[None, None], there[None, None]),
    ],
)
def test_devices_do_not_mix(other: str, mix: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mix(torch.ones(2, 2, device="sim"), torch.ones(2, 2, device=other))


def test_scalars_and_indices_may_be_on_the_cpu() -> None:
    x = torch.arange(4.0, device="sim")
    assert (x * torch.tensor(2.0))[torch.tensor([1, 3])].tolist() == [2, 6]


def test_the_backend_module() -> None:
    side, event = torch.sim.Stream(), torch.sim.Event()
    assert isinstance(side, torch.Stream)
    assert isinstance(event, torch.Event)
    with torch.sim.stream(side):
        assert torch.sim.current_stream() == torch.accelerator.current_stream() == side
        event.record()
    side.wait_event(event)
    assert torch.sim.current_stream() == torch.sim.default_stream()
    on_second = torch.sim.Stream(device=1)
    with torch.sim.stream(on_second):
        assert torch.sim.current_device() == 1
    assert torch.sim.current_device() == 0
    with torch.sim.stream(None):
        assert torch.sim.current_stream() == torch.sim.default_stream()
    assert torch.sim.is_available()
    assert torch.sim.get_device_properties().total_memory == torch.sim.mem_get_info()[1]
    assert torch.accelerator.get_memory_info() == torch.sim.mem_get_info()
    torch.sim.empty_cache()
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats()
    assert torch.accelerator.max_memory_allocated() == torch.sim.max_memory_allocated()


def test_registering_again_does_nothing() -> None:
    module = torch.sim
    register()
    assert torch.sim is module
    assert torch.device("sim", 0) == DEVICE


def test_without_a_compiler_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"'no-such-compiler' was not found. Install g\+\+"):
        build.load_extension()
