"""Errors are as sticky as those of CUDA, and what the stand-in does not have fails by name."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.standin_cuda import forgive, refused_kernels, settings

from .processes import run_program

OUT_OF_MEMORY, DEVICE_ASSERT = 2, 710


def last_error() -> int:
    return int(ctypes.CDLL(None).cudaGetLastError())


def fail_to_register() -> None:
    block = torch.zeros(1024)
    with settings(register_bytes=0):
        assert torch.cuda.cudart().cudaHostRegister(block.data_ptr(), block.nbytes, 0) == OUT_OF_MEMORY


def test_an_error_stays_until_it_is_told() -> None:
    fail_to_register()
    assert ctypes.CDLL(None).cudaPeekAtLastError() == OUT_OF_MEMORY
    assert last_error() == OUT_OF_MEMORY
    assert last_error() == 0


def test_an_error_that_nobody_took_is_raised_by_the_next_kernel() -> None:
    value = torch.ones(4, device="cuda")
    fail_to_register()
    with pytest.raises(torch.AcceleratorError, match="out of memory"):
        value + 1
    assert (value + 1).tolist() == [2.0] * 4


def test_an_error_that_was_taken_is_not() -> None:
    value = torch.ones(4, device="cuda")
    fail_to_register()
    last_error()
    assert (value + 1).tolist() == [2.0] * 4


def test_a_kernel_that_fails_is_told_later_and_ends_the_context() -> None:
    values = torch.ones(4, device="cuda")
    with settings(seed=-1):
        found = values[torch.tensor([9], device="cuda")]
        with pytest.raises(torch.AcceleratorError, match="device-side assert triggered"):
            torch.cuda.synchronize()
    for _ in range(2):
        with pytest.raises(torch.AcceleratorError, match="device-side assert triggered"):
            found.sum()
        assert last_error() == DEVICE_ASSERT
    with pytest.raises(torch.AcceleratorError, match="device-side assert triggered"):
        torch.cuda.Stream().synchronize()
    forgive()
    assert values.tolist() == [1.0] * 4


def test_a_kernel_of_pytorch_is_refused_by_name() -> None:
    with pytest.raises(torch.AcceleratorError, match="spin_kernel"):
        torch.cuda._sleep(1000)
    (name,) = refused_kernels()
    assert "spin_kernel" in name


def test_an_operator_that_is_not_there_is_named() -> None:
    with pytest.raises(NotImplementedError, match="_cslt_compress"):
        torch._cslt_compress(torch.ones(32, 32, device="cuda", dtype=torch.half))


def test_an_entry_point_that_is_not_there_is_named() -> None:
    done = run_program("import ctypes; ctypes.CDLL(None).cudaGraphAddNode()")
    assert done.returncode == -6
    assert "cudaGraphAddNode" in done.stderr


def test_a_setting_that_makes_no_sense_is_named() -> None:
    done = run_program("import torch; torch.cuda.init()", **{"seed": "many"})  # type: ignore[arg-type]
    assert done.returncode == -6
    assert "STANDIN_CUDA_SEED is many" in done.stderr
    with pytest.raises(ValueError, match="seeds"), settings(seeds=1):
        pass
