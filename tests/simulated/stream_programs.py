"""Small programs over streams and events, each with the race it contains, or none.

The verdict is about order, not about values: a program is wrong where nothing orders two conflicting uses of the same
bytes, whatever happened to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.simulated import reset_stats, stats

__all__ = ["PROGRAMS", "N", "Program", "Streams", "storage_view", "synchronize_all"]

N = 64
"""Elements of the buffers in stream programs."""


def synchronize_all() -> None:
    for index in range(torch.sim.device_count()):
        torch.sim.synchronize(index)


class Streams:
    """What a stream program works with: the default stream, three side streams, a device buffer, a pinned one."""

    def __init__(self) -> None:
        self.main = torch.sim.current_stream()
        self.a, self.b, self.c = (torch.Stream(device="sim") for _ in range(3))
        self.buffer = torch.zeros(N, device="sim")
        self.host = torch.ones(N).pin_memory()
        synchronize_all()
        reset_stats()

    def upload(self, stream: torch.Stream, destination: Tensor | None = None) -> None:
        with stream:
            (self.buffer if destination is None else destination).copy_(self.host[:N], non_blocking=True)

    def fetch(self, stream: torch.Stream) -> Tensor:
        """Copy from pinned memory into memory that belongs to ``stream``."""
        with stream:
            return self.host.to("sim", non_blocking=True)


class Program(NamedTuple):
    run: Callable[[Streams], None]
    race: str | None
    """Part of the report of the race it contains; None for a correct program."""


PROGRAMS: list[Program] = []


def correct(run: Callable[[Streams], None]) -> Callable[[Streams], None]:
    PROGRAMS.append(Program(run, None))
    return run


def racy(report: str) -> Callable[[Callable[[Streams], None]], Callable[[Streams], None]]:
    def add(run: Callable[[Streams], None]) -> Callable[[Streams], None]:
        PROGRAMS.append(Program(run, report))
        return run

    return add


@racy("aten::sum on stream 0 of sim:0 reads memory that host-to-device copy")
def read_without_wait(s: Streams) -> None:
    s.upload(s.a)
    s.buffer.sum()


@correct
def read_after_wait_stream(s: Streams) -> None:
    s.upload(s.a)
    s.main.wait_stream(s.a)
    assert s.buffer.sum().item() == N


@correct
def read_after_event(s: Streams) -> None:
    s.upload(s.a)
    event = s.a.record_event()
    event.wait(s.main)
    assert s.buffer.sum().item() == N


@correct
def read_after_the_host_waited_for_the_stream(s: Streams) -> None:
    s.upload(s.a)
    s.a.synchronize()
    assert s.buffer.sum().item() == N


@correct
def read_after_the_host_waited_for_the_event(s: Streams) -> None:
    s.upload(s.a)
    s.a.record_event().synchronize()
    assert s.buffer.sum().item() == N


@correct
def read_after_the_host_waited_for_the_device(s: Streams) -> None:
    s.upload(s.a)
    torch.accelerator.synchronize()
    assert s.buffer.sum().item() == N


@correct
def read_after_polling(s: Streams) -> None:
    s.upload(s.a)
    event = s.a.record_event()
    while not event.query():
        pass
    assert s.buffer.sum().item() == N


@racy("aten::sum")
def read_after_one_unsuccessful_poll(s: Streams) -> None:
    s.upload(s.a)
    assert not s.a.record_event().query()
    s.buffer.sum()


@racy("aten::sum")
def event_recorded_too_early(s: Streams) -> None:
    event = s.a.record_event()
    s.upload(s.a)
    event.wait(s.main)
    s.buffer.sum()


@racy("aten::sum")
def stream_waited_for_too_early(s: Streams) -> None:
    s.main.wait_stream(s.a)
    s.upload(s.a)
    s.buffer.sum()


@correct
def event_recorded_again(s: Streams) -> None:
    event = s.a.record_event()
    s.upload(s.a)
    event.record(s.a)
    event.wait(s.main)
    s.buffer.sum()


@racy("aten::sum")
def event_recorded_again_after_the_wait(s: Streams) -> None:
    event = s.a.record_event()
    event.wait(s.main)
    s.upload(s.a)
    event.record(s.a)
    s.buffer.sum()


@racy("aten::sum on stream 0")
def another_stream_waited(s: Streams) -> None:
    s.upload(s.a)
    s.b.wait_stream(s.a)
    s.buffer.sum()


@correct
def transitive_wait(s: Streams) -> None:
    s.upload(s.a)
    s.b.wait_stream(s.a)
    s.c.wait_event(s.b.record_event())
    s.main.wait_stream(s.c)
    assert s.buffer.sum().item() == N


@racy("aten::sum")
def transitive_wait_in_the_wrong_order(s: Streams) -> None:
    s.upload(s.a)
    event = s.b.record_event()
    s.b.wait_stream(s.a)
    s.main.wait_event(event)
    s.buffer.sum()


@racy("aten::sum")
def executed_but_not_waited_for(s: Streams) -> None:
    s.buffer.fill_(1)
    s.a.wait_stream(s.main)
    s.upload(s.a)
    s.b.wait_stream(s.a)
    with s.b:
        s.buffer.add(1)  # forces the copy: every byte is the right one by now
    s.buffer.sum()


@racy("host-to-device copy on stream")
def overwrite_without_wait(s: Streams) -> None:
    s.buffer.sum()
    s.upload(s.a)
    s.main.wait_stream(s.a)


@correct
def overwrite_after_wait(s: Streams) -> None:
    s.buffer.sum()
    s.a.wait_stream(s.main)
    s.upload(s.a)
    s.main.wait_stream(s.a)
    assert s.buffer.sum().item() == N


@racy("writes memory that aten::sum on stream 0 of sim:0 read")
def overwrite_after_waiting_for_an_earlier_use(s: Streams) -> None:
    s.buffer.sum()
    event = s.main.record_event()
    s.buffer.sum()
    s.a.wait_event(event)
    s.upload(s.a)


@correct
def slots_of_one_slab(s: Streams) -> None:
    s.buffer[: N // 2].sum()
    with s.a:
        s.buffer[N // 2 :].copy_(s.host[N // 2 :], non_blocking=True)
    s.buffer[: N // 2].sum()
    s.main.wait_stream(s.a)
    assert s.buffer[N // 2 :].sum().item() == N // 2


@racy("bytes 124 to 256")
def slots_that_overlap_by_one_element(s: Streams) -> None:
    s.buffer[: N // 2].sum()
    with s.a:
        s.buffer[N // 2 - 1 :].copy_(s.host[N // 2 - 1 :], non_blocking=True)


@correct
def slots_of_one_slab_by_storage_slices(s: Streams) -> None:
    low, high = (storage_view(s.buffer, begin, N // 2) for begin in (0, N // 2))
    low.sum()
    with s.a:
        high.copy_(s.host[N // 2 :], non_blocking=True)
    low.sum()


@racy("aten::sum")
def storage_slice_read_without_wait(s: Streams) -> None:
    s.upload(s.a)
    storage_view(s.buffer, N // 2, 8).sum()


def storage_view(tensor: Tensor, begin: int, length: int) -> Tensor:
    size = tensor.element_size()
    part = tensor.untyped_storage()[begin * size : (begin + length) * size]
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(part, 0, (length,), (1,))


@racy("freed while aten::sum on stream 0 of sim:0 may still use it")
def early_free(s: Streams) -> None:
    fetched = s.fetch(s.a)
    s.main.wait_stream(s.a)
    fetched.sum()
    del fetched


@correct
def free_after_record_stream(s: Streams) -> None:
    fetched = s.fetch(s.a)
    s.main.wait_stream(s.a)
    fetched.sum()
    fetched.record_stream(s.main)
    del fetched


@correct
def free_after_record_stream_of_a_view(s: Streams) -> None:
    fetched = s.fetch(s.a)
    s.main.wait_stream(s.a)
    view = storage_view(fetched, 8, 8)
    del fetched
    view.sum()
    view.record_stream(s.main)


@racy("freed while aten::sum")
def free_after_record_stream_of_the_wrong_stream(s: Streams) -> None:
    fetched = s.fetch(s.a)
    s.main.wait_stream(s.a)
    fetched.sum()
    fetched.record_stream(s.b)
    del fetched


@correct
def free_after_the_owner_waited(s: Streams) -> None:
    fetched = s.fetch(s.a)
    s.main.wait_stream(s.a)
    fetched.sum()
    s.a.wait_stream(s.main)
    del fetched


@correct
def free_after_the_host_waited(s: Streams) -> None:
    fetched = s.fetch(s.a)
    s.main.wait_stream(s.a)
    fetched.sum()
    torch.sim.synchronize()
    del fetched


@correct
def free_under_a_copy_of_the_owner(s: Streams) -> None:
    fetched = s.fetch(s.a)
    del fetched


@racy("freed while host-to-device copy")
def free_under_a_copy_of_another_stream(s: Streams) -> None:
    slab = torch.empty(N, device="sim")
    s.a.wait_stream(s.main)
    s.upload(s.a, slab)
    del slab


@racy("aten::zero_")
def overwrite_what_a_side_stream_uses(s: Streams) -> None:
    with s.a:
        s.buffer.sum()
    s.buffer.zero_()


@correct
def overwrite_what_a_side_stream_used(s: Streams) -> None:
    with s.a:
        s.buffer.sum()
    s.main.wait_stream(s.a)
    s.buffer.zero_()


@racy("aten::sum on stream 0 of sim:0 reads memory that aten::mul")
def read_what_a_side_stream_computed(s: Streams) -> None:
    with s.a:
        s.buffer.mul_(2)
    s.buffer.sum()


@racy("aten::sum on stream 0 of sim:0 reads memory that aten::add")
def read_a_result_of_a_side_stream(s: Streams) -> None:
    with s.a:
        result = s.buffer + 1
    result.sum()
    torch.sim.synchronize()
    del result


@racy("reads memory that aten::native_layer_norm on stream")
def read_one_of_several_results_of_a_side_stream(s: Streams) -> None:
    with s.a:
        result = torch.native_layer_norm(s.buffer, [N], None, None, 1e-5)[0]
    result.sum()
    torch.sim.synchronize()
    del result


@correct
def read_what_a_side_stream_computed_after_wait(s: Streams) -> None:
    with s.a:
        s.buffer.add_(1)
    s.main.wait_stream(s.a)
    s.buffer.sum()


@racy("freed while aten::sum on stream")
def free_what_a_side_stream_uses(s: Streams) -> None:
    block = torch.ones(N, device="sim")
    s.a.wait_stream(s.main)
    with s.a:
        block.sum()
    del block


@correct
def many_readers(s: Streams) -> None:
    for stream in (s.a, s.b, s.c, s.main):
        with stream:
            s.buffer.sum()


@racy("host-to-device copy on stream")
def two_writers(s: Streams) -> None:
    s.upload(s.a)
    s.upload(s.b)


@racy("aten::zero_")
def write_under_one_reader_of_two(s: Streams) -> None:
    for stream in (s.a, s.b):
        with stream:
            s.buffer.sum()
    s.main.wait_stream(s.b)
    s.buffer.zero_()


@racy("writes memory that allocation on stream 0 of sim:0 wrote")
def fill_fresh_memory_of_another_stream(s: Streams) -> None:
    s.buffer.sum()  # a real allocator may hand out memory that such earlier work still uses
    slab = torch.empty(N, device="sim")
    s.upload(s.a, slab)
    torch.sim.synchronize()


@correct
def fill_fresh_memory_after_wait(s: Streams) -> None:
    s.buffer.sum()
    slab = torch.empty(N, device="sim")
    s.a.wait_stream(s.main)
    s.upload(s.a, slab)
    torch.sim.synchronize()


@racy("aten::zero_ on stream 0 of sim:0 writes memory that device-to-host copy")
def overwrite_under_a_download(s: Streams) -> None:
    with s.a:
        s.host.copy_(s.buffer, non_blocking=True)
    s.buffer.zero_()


@correct
def overwrite_after_a_download(s: Streams) -> None:
    with s.a:
        s.host.copy_(s.buffer, non_blocking=True)
    s.main.wait_stream(s.a)
    s.buffer.fill_(7)
    s.a.synchronize()
    assert s.host.sum().item() == 0


@racy("freed while device-to-host copy")
def free_under_a_download(s: Streams) -> None:
    block = s.buffer + 3
    s.a.wait_stream(s.main)
    with s.a:
        s.host.copy_(block, non_blocking=True)
    del block


@correct
def free_under_a_recorded_download(s: Streams) -> None:
    block = s.buffer + 3
    s.a.wait_stream(s.main)
    with s.a:
        s.host.copy_(block, non_blocking=True)
    block.record_stream(s.a)
    del block
    s.a.synchronize()
    assert s.host.sum().item() == 3 * N


@correct
def free_under_a_download_of_the_owner(s: Streams) -> None:
    with s.a:
        block = s.host.to("sim", non_blocking=True) + 3
        s.host.copy_(block, non_blocking=True)
        del block
    s.a.synchronize()
    assert s.host.sum().item() == 4 * N


@racy("device-to-host copy on stream")
def download_without_waiting_for_the_result(s: Streams) -> None:
    s.buffer.add_(1)
    with s.a:
        s.host.copy_(s.buffer, non_blocking=True)


@correct
def download_then_upload_in_order(s: Streams) -> None:
    with s.a:
        s.buffer.fill_(5)
        s.host.copy_(s.buffer, non_blocking=True)
        s.buffer.copy_(s.host, non_blocking=True)
    s.main.wait_stream(s.a)
    assert s.buffer.sum().item() == 5 * N


@racy("host-to-device copy on stream")
def upload_from_an_unfinished_download(s: Streams) -> None:
    with s.a:
        s.host.copy_(s.buffer, non_blocking=True)
    with s.b:
        s.host.to("sim", non_blocking=True)


@correct
def upload_from_a_finished_download(s: Streams) -> None:
    with s.a:
        s.host.copy_(s.buffer, non_blocking=True)
    s.b.wait_stream(s.a)
    with s.b:
        s.host.to("sim", non_blocking=True)


@racy("pinned host memory freed before a queued host-to-device copy")
def free_the_source_of_a_queued_upload(s: Streams) -> None:
    s.upload(s.a)
    del s.host


@correct
def free_the_source_of_a_finished_upload(s: Streams) -> None:
    s.upload(s.a)
    s.main.wait_stream(s.a)
    assert s.buffer.sum().item() == N
    del s.host


@racy("pinned host memory freed before a queued device-to-host copy")
def free_the_destination_of_a_queued_download(s: Streams) -> None:
    with s.a:
        s.host.copy_(s.buffer, non_blocking=True)
    del s.host


@racy("pinned host memory overwritten before a queued host-to-device copy")
def overwrite_the_source_of_a_queued_upload(s: Streams) -> None:
    s.upload(s.a)
    s.host.zero_()
    s.a.synchronize()


@correct
def overwrite_the_source_of_a_finished_upload(s: Streams) -> None:
    s.upload(s.a)
    s.a.synchronize()
    s.host.zero_()
    assert s.buffer.sum().item() == N


@racy("aten::sum")
def read_pageable_upload_without_wait(s: Streams) -> None:
    with s.a:
        s.buffer.copy_(torch.ones(N), non_blocking=True)  # the host waits for the staging, not for the copy
    s.buffer.sum()


@correct
def read_blocking_upload(s: Streams) -> None:
    with s.a:
        s.buffer.copy_(torch.ones(N))
    assert s.buffer.sum().item() == N


@racy("device-to-device copy on stream")
def copy_within_the_device_without_wait(s: Streams) -> None:
    s.upload(s.a)
    torch.empty_like(s.buffer).copy_(s.buffer)


@correct
def copy_between_devices(s: Streams) -> None:
    s.buffer.fill_(2)
    there = s.buffer.to("sim:1")
    s.buffer.zero_()
    assert there.sum().item() == 2 * N


@racy("device-to-device copy on stream 0 of sim:0")
def side_stream_of_the_other_device_reads_without_wait(s: Streams) -> None:
    other = torch.Stream(device="sim:1")
    there = s.buffer.to("sim:1")
    with other:
        there.sum()
    torch.sim.synchronize(1)


@correct
def wait_across_devices(s: Streams) -> None:
    other = torch.Stream(device="sim:1")
    there = s.buffer.to("sim:1")
    other.wait_stream(torch.sim.default_stream(1))
    with other:
        there.sum()
    torch.sim.synchronize(1)


def double_buffered_pass(s: Streams, *, wait_for_readers: bool) -> None:
    """The pattern of an offloading engine: two slots of one slab, filled ahead on a side stream."""
    slots = s.buffer.chunk(2)
    weights = [torch.full((N // 2,), float(value)).pin_memory() for value in range(6)]
    ready: list[torch.Event] = []
    read: list[torch.Event] = []

    def prefetch(group: int) -> None:
        if wait_for_readers and group >= 2:
            s.a.wait_event(read[group - 2])
        with s.a:
            slots[group % 2].copy_(weights[group], non_blocking=True)
        ready.append(s.a.record_event())

    s.a.wait_stream(s.main)
    prefetch(0)
    prefetch(1)
    total = torch.zeros((), device="sim")
    for group in range(6):
        s.main.wait_event(ready[group])
        total += slots[group % 2].sum()
        read.append(s.main.record_event())
        if group + 2 < 6:
            prefetch(group + 2)
    assert stats().host_syncs == 0
    if wait_for_readers:
        assert total.item() == sum(range(6)) * N // 2
    torch.sim.synchronize()


@correct
def double_buffered(s: Streams) -> None:
    double_buffered_pass(s, wait_for_readers=True)


@racy("host-to-device copy on stream")
def double_buffered_without_waiting_for_readers(s: Streams) -> None:
    double_buffered_pass(s, wait_for_readers=False)
