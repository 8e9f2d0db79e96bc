"""Virtual time: small programs whose times are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.simulated import (
    compute_for,
    host_busy_for,
    host_seconds,
    set_compute,
    set_link,
    timing,
)

from .stream_programs import N, Streams

BYTES = 4 * N
COPY = 2.5  # seconds for BYTES at the speeds below


@pytest.fixture(autouse=True)
def speeds() -> Iterator[None]:
    with timing():
        set_link(bandwidth=BYTES / 2, latency=0.5)
        set_compute(launch=1.0)
        yield


class Clock:
    """Seconds since it was made: of streams when work issued so far is over, and of the host."""

    def __init__(self) -> None:
        torch.sim.synchronize()
        self._host = host_seconds()
        self._start = self._mark(torch.sim.current_stream())

    def _mark(self, stream: torch.Stream) -> torch.Event:
        event = torch.sim.Event(enable_timing=True)
        event.record(stream)
        return event

    def of(self, stream: torch.Stream) -> float:
        mark = self._mark(stream)
        while not mark.query():
            pass
        return self._start.elapsed_time(mark) / 1e3

    @property
    def host(self) -> float:
        return host_seconds() - self._host


Times = tuple[float, float, float, float]  # of the main stream, of streams a and b, and of the host


def kernels_follow_one_another(s: Streams) -> None:
    s.buffer.add_(1)
    s.buffer.add_(1)


def streams_run_side_by_side(s: Streams) -> None:
    s.buffer.add_(1)
    with s.a:
        compute_for(3)


def an_event_holds_whoever_waits_for_it(s: Streams) -> None:
    s.upload(s.a)
    s.main.wait_stream(s.a)
    s.buffer.add_(1)


def an_event_holds_nobody_who_is_later(s: Streams) -> None:
    with s.a:
        compute_for(1)
    compute_for(3)
    s.main.wait_event(s.a.record_event())


def an_event_is_the_past_of_its_stream(s: Streams) -> None:
    compute_for(1)
    event = s.main.record_event()
    compute_for(4)
    s.a.wait_event(event)


def copies_share_the_link(s: Streams) -> None:
    s.upload(s.a, torch.empty_like(s.buffer))
    s.upload(s.b, torch.empty_like(s.buffer))


def each_direction_has_its_own(s: Streams) -> None:
    s.upload(s.a, torch.empty_like(s.buffer))
    with s.b:
        s.host.copy_(s.buffer, non_blocking=True)


def a_copy_waits_for_its_stream(s: Streams) -> None:
    with s.a:
        compute_for(4)
    s.upload(s.a)


def the_link_is_kept_for_who_issued_first(s: Streams) -> None:
    with s.a:
        compute_for(4)
    s.upload(s.a, torch.empty_like(s.buffer))
    s.upload(s.b, torch.empty_like(s.buffer))


def synchronizing_takes_as_long_as_the_device(s: Streams) -> None:
    with s.a:
        compute_for(3)
    s.a.synchronize()
    compute_for(1)


def an_event_synchronized_with_takes_what_came_before(s: Streams) -> None:
    compute_for(3)
    event = s.main.record_event()
    compute_for(1)
    event.synchronize()


def a_blocking_copy_keeps_the_host(s: Streams) -> None:
    compute_for(1)
    s.buffer.copy_(s.host)
    with s.a:
        compute_for(1)


def pageable_memory_keeps_the_host_until_it_is_staged(s: Streams) -> None:
    compute_for(1)
    s.buffer.copy_(torch.ones(N), non_blocking=True)


def an_item_comes_over_the_link(s: Streams) -> None:
    set_link(bandwidth=4, latency=0.5, direction="d2h")
    s.buffer[0].item()


def what_the_host_issues_late_starts_late(s: Streams) -> None:
    host_busy_for(2)
    compute_for(1)


def a_copy_within_the_device_is_a_kernel(s: Streams) -> None:
    set_compute(per_byte=1 / BYTES)
    s.buffer.clone()


def polling_takes_no_time(s: Streams) -> None:
    with s.a:
        compute_for(3)
    while not s.a.query():
        pass
    compute_for(1)


PROGRAMS: list[tuple[Callable[[Streams], None], Times]] = [
    (kernels_follow_one_another, (2, 0, 0, 0)),
    (streams_run_side_by_side, (1, 3, 0, 0)),
    (an_event_holds_whoever_waits_for_it, (COPY + 1, COPY, 0, 0)),
    (an_event_holds_nobody_who_is_later, (3, 1, 0, 0)),
    (an_event_is_the_past_of_its_stream, (5, 1, 0, 0)),
    (copies_share_the_link, (0, COPY, 2 * COPY, 0)),
    (each_direction_has_its_own, (0, COPY, COPY, 0)),
    (a_copy_waits_for_its_stream, (0, 4 + COPY, 0, 0)),
    (the_link_is_kept_for_who_issued_first, (0, 4 + COPY, 4 + 2 * COPY, 0)),
    (synchronizing_takes_as_long_as_the_device, (4, 3, 3, 3)),
    (an_event_synchronized_with_takes_what_came_before, (4, 3, 3, 3)),
    (a_blocking_copy_keeps_the_host, (1 + COPY, 2 + COPY, 1 + COPY, 1 + COPY)),
    (pageable_memory_keeps_the_host_until_it_is_staged, (1 + COPY, 1, 1, 1)),
    (an_item_comes_over_the_link, (1.5, 1.5, 1.5, 1.5)),
    (what_the_host_issues_late_starts_late, (3, 2, 2, 2)),
    (a_copy_within_the_device_is_a_kernel, (2, 0, 0, 0)),
    (polling_takes_no_time, (1, 3, 0, 0)),
]


@pytest.mark.parametrize(("program", "expected"), PROGRAMS, ids=lambda value: getattr(value, "__name__", ""))
def test_times_of_a_program(program: Callable[[Streams], None], expected: Times) -> None:
    streams = Streams()
    clock = Clock()
    program(streams)
    host = clock.host
    assert (*map(clock.of, (streams.main, streams.a, streams.b)), host) == expected


def test_time_depends_on_the_bytes_of_operands_and_on_nothing_else() -> None:
    s = Streams()
    set_compute(launch=0.25, per_byte=1 / BYTES)
    clock = Clock()
    s.buffer.fill_(1)
    assert clock.of(s.main) == 1.25
    s.buffer.add_(1)  # reads and writes
    assert clock.of(s.main) == 3.5
    torch.maximum(s.buffer[: N // 2], s.buffer[N // 2 :])  # into a half
    assert clock.of(s.main) == 5.25
    s.buffer.view(2, -1).t()
    torch.empty_like(s.buffer)
    assert clock.of(s.main) == 5.25


def test_devices_have_clocks_and_links_of_their_own() -> None:
    s = Streams()
    other = torch.Stream(device="sim:1")
    there = torch.empty(N, device="sim:1")
    clock = Clock()
    s.upload(s.a)
    with other:
        there.copy_(s.host, non_blocking=True)
    assert clock.of(s.a) == clock.of(other) == COPY


def test_elapsed_time_is_that_of_cuda() -> None:
    s = Streams()
    begin, end = (torch.Event("sim", enable_timing=True) for _ in range(2))
    with pytest.raises(ValueError, match="recorded"):
        begin.elapsed_time(end)
    begin.record()
    s.upload(s.a)
    end.record(s.a)
    with pytest.raises(RuntimeError, match="completed"):
        begin.elapsed_time(end)
    end.synchronize()
    assert begin.elapsed_time(end) == COPY * 1e3
    assert end.elapsed_time(begin) == -COPY * 1e3
    end.record()
    assert begin.elapsed_time(end) == COPY * 1e3, "the host waited, so nothing begins earlier"
    with pytest.raises(ValueError, match="enable_timing"):
        torch.sim.Event().elapsed_time(end)


def test_time_begins_at_a_whole_second() -> None:
    host_busy_for(0.1)
    with timing():
        assert host_seconds().is_integer()
        assert (Clock().host, Clock().of(torch.sim.current_stream())) == (0, 0)


def test_speeds_are_put_back() -> None:
    host = torch.ones(N).pin_memory()

    def copied() -> float:
        clock = Clock()
        torch.empty(N, device="sim").copy_(host, non_blocking=True).fill_(0)
        compute_for(1)
        return clock.of(torch.sim.current_stream())

    assert copied() == COPY + 1 + 1
    with timing():
        set_link(bandwidth=1)
        set_compute(launch=5)
        assert copied() == BYTES + 5 + 1
    assert copied() == COPY + 1 + 1
