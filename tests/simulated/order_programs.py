"""Programs that read on one stream what another copies: what orders the two, and what only seems to."""

from __future__ import annotations

import torch

from .programs import N, Streams, correct, racy

__all__: list[str] = []


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
