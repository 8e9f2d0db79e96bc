"""Memory: the host cannot touch that of a device, and there is as much of each kind as a test says."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.standin_cuda import misuse, pinned_bytes, settings, used_bytes

from .processes import run_program

MIB = 2**20


@pytest.mark.parametrize("access", ["ctypes.string_at(x.data_ptr(), 4)", "ctypes.memset(x.data_ptr(), 0, 4)"])
def test_the_host_cannot_touch_memory_of_a_device(access: str) -> None:
    done = run_program(f"import ctypes, torch; x = torch.ones(4, device='cuda'); print(x.sum().item()); {access}")
    assert "4.0" in done.stdout
    assert done.returncode == -11
    assert "the host touched memory of a device" in done.stderr


def test_fresh_memory_is_no_zeros() -> None:
    torch.cuda.empty_cache()
    assert torch.empty(4 * MIB, device="cuda", dtype=torch.uint8).min().item() == 255


def test_a_copy_past_the_end_of_a_block_is_refused() -> None:
    begin = torch.empty(2 * MIB, device="cuda", dtype=torch.uint8)
    there = ctypes.c_void_p(begin.untyped_storage().data_ptr())
    into = (ctypes.c_char * 64)()
    copy = ctypes.CDLL(None).cudaMemcpy
    assert copy(into, there, ctypes.c_size_t(64), 2) == 0
    far = ctypes.c_void_p(begin.data_ptr() + torch.cuda.memory_reserved())
    assert copy(into, far, ctypes.c_size_t(64), 2) == 1
    assert ctypes.CDLL(None).cudaGetLastError() == 1


def test_allocations_fail_beyond_the_memory_of_the_device() -> None:
    torch.cuda.empty_cache()
    with settings(bytes=used_bytes() + 64 * MIB):
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(80 * MIB, device="cuda", dtype=torch.uint8)
        free, _ = torch.cuda.mem_get_info()
        assert free == 64 * MIB
        assert torch.ones(4, device="cuda").sum().item() == 4
    torch.empty(80 * MIB, device="cuda", dtype=torch.uint8)


def test_the_nth_allocation_fails_and_pytorch_tries_again() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_stats()["num_alloc_retries"]
    with settings(malloc_fails_at=2):
        kept = [torch.empty(30 * MIB, device="cuda", dtype=torch.uint8) for _ in range(3)]
    assert torch.cuda.memory_stats()["num_alloc_retries"] == before + 1
    assert len(kept) == 3


def test_pinned_memory_fails_beyond_its_limit() -> None:
    torch.accelerator.empty_host_cache()
    with settings(host_alloc_bytes=MIB):
        with pytest.raises(torch.AcceleratorError, match="out of memory"):
            torch.empty(2 * MIB, dtype=torch.uint8, pin_memory=True)
        assert torch.ones(4, pin_memory=True).is_pinned()
    assert (torch.ones(4, device="cuda") + 1).sum().item() == 8


def register(block: torch.Tensor) -> int:
    code = int(torch.cuda.cudart().cudaHostRegister(block.data_ptr(), block.nbytes, 0))
    ctypes.CDLL(None).cudaGetLastError()
    return code


def test_the_nth_registration_fails() -> None:
    blocks = [torch.zeros(4096, dtype=torch.uint8) for _ in range(3)]
    before = pinned_bytes()
    with settings(register_fails_at=2):
        assert [register(block) for block in blocks] == [0, 2, 0]
    assert pinned_bytes() == before + 2 * 4096
    assert blocks[0].is_pinned()
    assert not blocks[1].is_pinned()
    assert register(blocks[0][1:2]) == 712  # already registered
    for block in (blocks[0], blocks[2]):
        assert torch.cuda.cudart().cudaHostUnregister(block.data_ptr()) == 0
    assert torch.cuda.cudart().cudaHostUnregister(blocks[1].data_ptr()) == 713  # was not
    ctypes.CDLL(None).cudaGetLastError()


def test_memory_that_is_unregistered_under_a_copy_is_reported() -> None:
    block = torch.ones(4096, dtype=torch.uint8)
    assert register(block) == 0
    with settings(seed=-1):
        there = block.to("cuda", non_blocking=True)
        torch.cuda.cudart().cudaHostUnregister(block.data_ptr())
    assert misuse() == ["cudaHostUnregister of memory that a queued copy uses"]
    assert there.sum().item() == 4096


def test_two_devices() -> None:
    """Each with its memory, and copies from one to the other that streams of both are ordered by."""
    done = run_program(
        """
        import torch
        assert torch.cuda.device_count() == 2
        a = torch.full((1000,), 3.0, device="cuda:0")
        b = a.to("cuda:1", non_blocking=True)
        a.fill_(5)
        assert (b + 1).sum().item() == 4000, b
        assert torch.cuda.memory_allocated(0) == torch.cuda.memory_allocated(1) == 4096
        c = torch.empty(10, 10, device="cuda:0", dtype=torch.half)
        c.copy_(b[:100].view(10, 10).t())
        assert c.tolist() == [[3.0] * 10] * 10
        try:
            a + b
            raise SystemExit("devices are mixed")
        except RuntimeError as error:
            assert "cuda:0 and cuda:1" in str(error), error
        with torch.cuda.device(1):
            s = torch.cuda.Stream()
        assert s.device.index == 1
        s.wait_stream(torch.cuda.current_stream(0))
        with torch.cuda.stream(s):
            d = b * 2
        torch.cuda.current_stream(0).wait_stream(s)
        assert torch.zeros(1000, device="cuda:0").copy_(d).sum().item() == 6000
        from tests import standin_cuda
        assert standin_cuda.used_bytes(0) > 0 < standin_cuda.used_bytes(1)
        print("done")
        """,
        devices=2,
        seed=3,
    )
    assert done.stdout == "done\n", done.stderr


def test_the_allocator_of_cuda_itself() -> None:
    done = run_program(
        """
        import os
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "backend:cudaMallocAsync"
        import torch
        x = torch.ones(1000, device="cuda")
        y = [x * i for i in range(10)]
        del x
        assert sum(t.sum().item() for t in y) == 45000
        print(torch.cuda.get_allocator_backend())
        """,
        seed=5,
    )
    assert done.stdout == "cudaMallocAsync\n", done.stderr
