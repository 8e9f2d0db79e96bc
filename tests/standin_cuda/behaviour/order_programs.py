"""Programs over streams, each with a wait that it needs: what they compute, with it and without it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["PROGRAMS", "N"]

N = 256
"""Elements of the buffers."""

Program = Callable[[bool], tuple[Tensor, Tensor]]
"""Takes whether to wait; returns what it computed and what is right."""

PROGRAMS: dict[str, Program] = {}


def program(run: Program) -> Program:
    PROGRAMS[run.__name__] = run
    return run


def ones_in_pinned_memory() -> Tensor:
    return torch.ones(N).pin_memory()


def zeros() -> Tensor:
    buffer = torch.zeros(N, device="cuda")
    torch.cuda.synchronize()
    return buffer


@program
def a_kernel_reads_what_another_stream_uploads(wait: bool) -> tuple[Tensor, Tensor]:
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    buffer, source = zeros(), ones_in_pinned_memory()
    with torch.cuda.stream(side):
        buffer.copy_(source, non_blocking=True)
    if wait:
        main.wait_stream(side)
    result = (buffer * 2).cpu()
    torch.cuda.synchronize()
    return result, torch.full((N,), 2.0)


@program
def an_upload_overwrites_what_a_kernel_still_reads(wait: bool) -> tuple[Tensor, Tensor]:
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    buffer, source = zeros(), ones_in_pinned_memory()
    result = buffer * 2
    if wait:
        side.wait_stream(main)
    with torch.cuda.stream(side):
        buffer.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return result.cpu(), torch.zeros(N)


@program
def a_kernel_reads_what_a_kernel_of_another_stream_writes(wait: bool) -> tuple[Tensor, Tensor]:
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    buffer = zeros()
    with torch.cuda.stream(side):
        buffer.add_(1)
    if wait:
        main.wait_event(side.record_event())
    result = (buffer + 1).cpu()
    torch.cuda.synchronize()
    return result, torch.full((N,), 2.0)


@program
def a_kernel_overwrites_what_a_kernel_of_another_stream_still_reads(wait: bool) -> tuple[Tensor, Tensor]:
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    buffer = zeros()
    with torch.cuda.stream(side):
        result = buffer + 1
    if wait:
        main.wait_event(side.record_event())
    buffer.fill_(5)
    torch.cuda.synchronize()
    return result.cpu(), torch.ones(N)


@program
def an_event_is_recorded_before_what_it_should_cover(wait: bool) -> tuple[Tensor, Tensor]:
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    buffer, source, event = zeros(), ones_in_pinned_memory(), torch.cuda.Event()
    if not wait:
        event.record(side)
    with torch.cuda.stream(side):
        buffer.copy_(source, non_blocking=True)
    if wait:
        event.record(side)
    main.wait_event(event)
    result = (buffer * 2).cpu()
    torch.cuda.synchronize()
    return result, torch.full((N,), 2.0)


@program
def the_host_reads_what_is_being_downloaded(wait: bool) -> tuple[Tensor, Tensor]:
    into = torch.zeros(N).pin_memory()
    buffer = zeros().add_(3)
    into.copy_(buffer, non_blocking=True)
    if wait:
        torch.cuda.current_stream().synchronize()
    result = into.clone()
    torch.cuda.synchronize()
    return result, torch.full((N,), 3.0)


@program
def the_host_overwrites_what_is_being_uploaded(wait: bool) -> tuple[Tensor, Tensor]:
    buffer, source = zeros(), ones_in_pinned_memory()
    buffer.copy_(source, non_blocking=True)
    if wait:
        torch.cuda.current_stream().record_event().synchronize()
    source.fill_(7)
    torch.cuda.synchronize()
    return buffer.cpu(), torch.ones(N)


@program
def memory_of_another_stream_is_freed_while_a_kernel_reads_it(wait: bool) -> tuple[Tensor, Tensor]:
    """The allocator gives the block to the stream it is of again, unless `record_stream` told it of the kernel."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        buffer = torch.ones(N, device="cuda")
    main.wait_stream(side)
    result = buffer + 1
    if wait:
        buffer.record_stream(main)
    del buffer
    with torch.cuda.stream(side):
        torch.full((N,), 9.0, device="cuda")
    torch.cuda.synchronize()
    return result.cpu(), torch.full((N,), 2.0)


@program
def a_wait_passes_through_a_third_stream(wait: bool) -> tuple[Tensor, Tensor]:
    main, side, third = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()
    buffer, source = zeros(), ones_in_pinned_memory()
    with torch.cuda.stream(side):
        buffer.copy_(source, non_blocking=True)
    if wait:
        third.wait_stream(side)
    main.wait_stream(third)
    result = (buffer * 2).cpu()
    torch.cuda.synchronize()
    return result, torch.full((N,), 2.0)
