"""Copies wait for the host, and the host for copies, as CUDA says: by what kind of memory is at their ends."""

from __future__ import annotations

import torch

from tests.standin_cuda import reset_stats, settings, stats

LITTLE, MUCH = 8 << 10, 128 << 10
LATE = -1


def waits_of_an_upload(source: torch.Tensor) -> int:
    into = torch.zeros_like(source, device="cuda")
    torch.cuda.synchronize()
    reset_stats()
    with settings(seed=LATE):
        into.copy_(source, non_blocking=True)
        waits = stats().host_waits
        source.fill_(7)
        torch.cuda.synchronize()
    overwritten = into[0].item() == 7
    assert overwritten == source.is_pinned()  # what is pageable has been read when the call returns
    return int(waits)


def test_an_upload_of_pinned_memory_does_not_wait() -> None:
    assert waits_of_an_upload(torch.ones(MUCH, dtype=torch.uint8).pin_memory()) == 0


def test_an_upload_of_little_pageable_memory_does_not_wait() -> None:
    assert waits_of_an_upload(torch.ones(LITTLE, dtype=torch.uint8)) == 0
    assert stats().pageable_h2d == 1


def test_an_upload_of_much_pageable_memory_waits_for_its_stream() -> None:
    assert waits_of_an_upload(torch.ones(MUCH, dtype=torch.uint8)) == 1


def test_a_download_to_pageable_memory_is_over_when_the_call_returns() -> None:
    source = torch.ones(LITTLE, dtype=torch.uint8, device="cuda")
    into = torch.zeros(LITTLE, dtype=torch.uint8)
    with settings(seed=LATE):
        into.copy_(source, non_blocking=True)
        assert into.sum().item() == LITTLE


def test_a_blocking_copy_waits() -> None:
    with settings(seed=LATE):
        into = torch.zeros(LITTLE, dtype=torch.uint8).pin_memory()
        into.copy_(torch.ones(LITTLE, dtype=torch.uint8, device="cuda"))
        assert into.sum().item() == LITTLE


def test_copies_of_other_strides_or_types_are_right() -> None:
    source = torch.arange(24.0).view(4, 6)
    for seed in range(20):
        with settings(seed=seed):
            there = source.t().to("cuda", non_blocking=True)
            assert torch.equal(there.cpu(), source.t())
            assert torch.equal(source[:, ::2].to("cuda", torch.bfloat16).cpu(), source[:, ::2].bfloat16())
            wide = torch.zeros(4, 12, device="cuda")
            wide[:, ::2].copy_(source)
            assert torch.equal(wide.cpu()[:, ::2], source)
            assert torch.equal(there[1:3].cpu(), source.t()[1:3])
            back = torch.empty(6, 4).t()
            back.copy_(there.t())
            assert torch.equal(back, source)
            conjugate = torch.view_as_complex(there.contiguous().view(6, 2, 2)).conj()
            assert torch.equal(conjugate.cpu().real, source.t()[:, ::2])


def test_counters_tell_bytes_and_directions() -> None:
    source = torch.ones(1000).pin_memory()
    reset_stats()
    there = source.to("cuda", non_blocking=True)
    there.clone()
    there.cpu()
    counted = stats()
    assert (counted.h2d, counted.h2d_bytes, counted.d2h, counted.d2h_bytes, counted.d2d) == (1, 4000, 1, 4000, 1)
