"""Programs whose copies run the other way, within the device and between devices, and the pattern of an engine."""

from __future__ import annotations

import torch

from tests.simulated import stats

from .programs import N, Streams, correct, racy

__all__: list[str] = []


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
