"""Programs that overwrite, free and take memory which another stream may still use."""

from __future__ import annotations

import torch

from .programs import N, Streams, correct, racy, storage_view

__all__: list[str] = []


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
