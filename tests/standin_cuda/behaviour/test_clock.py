"""Virtual time: what a program takes, from the program alone, in whatever order its work runs here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tests.standin_cuda import settings
from tests.standin_cuda.clock import compute_for, host_busy_for, host_seconds, set_compute, set_link, timing

SECOND = 4096
"""Bytes that a copy takes a second for."""


@pytest.fixture(autouse=True, params=[-1, 1, 2], ids=lambda seed: f"seed {seed}")
def exact_speeds(request: pytest.FixtureRequest) -> Iterator[None]:
    with settings(seed=request.param), timing():
        set_link(bandwidth=SECOND)
        set_compute()
        yield


def pinned(seconds: float) -> torch.Tensor:
    return torch.ones(int(seconds * SECOND), dtype=torch.uint8).pin_memory()


def mark(stream: torch.cuda.Stream | None = None) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event


def seconds(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def test_a_copy_takes_its_bytes_at_the_bandwidth_of_its_direction() -> None:
    set_link(bandwidth=SECOND / 2, latency=0.5, direction="d2h")
    there = torch.empty(2 * SECOND, dtype=torch.uint8, device="cuda")
    begin = mark()
    there.copy_(pinned(2), non_blocking=True)
    middle = mark()
    pinned(2).copy_(there, non_blocking=True)
    end = mark()
    assert (seconds(begin, middle), seconds(middle, end)) == (2.0, 4.5)


def test_each_direction_has_one_engine() -> None:
    streams = [torch.cuda.Stream() for _ in range(3)]
    device = [torch.empty(SECOND, dtype=torch.uint8, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    begin, ends = mark(), []
    for index, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            if index == 2:
                pinned(1).copy_(device[index], non_blocking=True)
            else:
                device[index].copy_(pinned(1), non_blocking=True)
            ends.append(mark())
    assert [seconds(begin, end) for end in ends] == [1.0, 2.0, 1.0]


def test_copies_pass_while_kernels_compute() -> None:
    side = torch.cuda.Stream()
    there = torch.empty(3 * SECOND, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    begin = mark()
    with torch.cuda.stream(side):
        there.copy_(pinned(3), non_blocking=True)
    compute_for(2)
    computed = mark()
    torch.cuda.current_stream().wait_stream(side)
    compute_for(1)
    assert (seconds(begin, computed), seconds(begin, mark())) == (2.0, 4.0)


def test_the_host_waits_as_long_as_the_device_takes_and_issues_for_nothing() -> None:
    compute_for(2)
    begin = host_seconds()
    compute_for(3)
    assert host_seconds() == begin
    torch.cuda.synchronize()
    assert host_seconds() == begin + 5
    host_busy_for(4)
    first = mark()
    compute_for(1)
    second = mark()
    second.synchronize()
    assert host_seconds() == begin + 10
    assert seconds(first, second) == 1


def test_work_begins_no_earlier_than_the_host_issues_it() -> None:
    begin = mark()
    host_busy_for(3)
    compute_for(1)
    assert seconds(begin, mark()) == 4


def test_the_host_waits_for_much_pageable_memory_and_for_downloads() -> None:
    there = torch.empty(1 << 18, dtype=torch.uint8, device="cuda")
    set_link(bandwidth=1 << 18)
    torch.cuda.synchronize()
    begin = host_seconds()
    compute_for(2)
    there.copy_(torch.ones(1 << 18, dtype=torch.uint8), non_blocking=True)
    assert host_seconds() == begin + 2
    there.cpu()
    assert host_seconds() == begin + 4


def test_operators_take_what_the_table_says() -> None:
    set_compute(launch=1)
    set_compute("aten::addmm", per_flop=2**-10)
    set_compute("aten::silu", per_byte=2**-10)
    value, weight, bias = (torch.ones(*shape, device="cuda") for shape in ((8, 16), (32, 16), (32,)))
    torch.cuda.synchronize()
    begin = mark()
    product = F.linear(value, weight, bias)
    middle = mark()
    F.silu(product)
    end = mark()
    product + 1
    after = mark()
    assert seconds(begin, middle) == 2 * 8 * 16 * 32 / 2**10
    assert seconds(middle, end) == 2 * 8 * 32 * 4 / 2**10
    assert seconds(end, after) == 1


def test_attention_and_convolutions_are_counted_in_operations() -> None:
    set_compute(per_flop=2**-20)
    query = torch.ones(1, 2, 8, 16, device="cuda")
    image, filters = torch.ones(1, 4, 8, 8, device="cuda"), torch.ones(6, 4, 3, 3, device="cuda")
    torch.cuda.synchronize()
    begin = mark()
    F.scaled_dot_product_attention(query, query, query)
    middle = mark()
    F.conv2d(image, filters)
    assert seconds(begin, middle) == 4 * 2 * 8 * 8 * 16 / 2**20
    assert seconds(middle, mark()) == 2 * 6 * 36 * 4 * 9 / 2**20


def test_a_graph_takes_what_its_longest_path_takes() -> None:
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    source, there = pinned(3), torch.empty(3 * SECOND, dtype=torch.uint8, device="cuda")
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            there.copy_(source, non_blocking=True)
        compute_for(2)
        torch.cuda.current_stream().wait_stream(side)
        compute_for(1)
    begin = mark()
    graph.replay()
    middle = mark()
    graph.replay()
    assert (seconds(begin, middle), seconds(middle, mark())) == (4.0, 4.0)


def test_events_that_have_not_happened_have_no_time() -> None:
    begin = mark()
    compute_for(1)
    end = mark()
    with settings(seed=-1, patience=100):
        if not end.query():  # with a seed it may have
            with pytest.raises(RuntimeError, match="must be completed"):
                begin.elapsed_time(end)
    untimed = torch.cuda.Event()
    untimed.record()
    torch.cuda.synchronize()
    with pytest.raises((RuntimeError, ValueError)):
        begin.elapsed_time(untimed)
