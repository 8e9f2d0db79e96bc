"""A wait that is missing gives a wrong result in some order; with the wait all orders give the right one."""

from __future__ import annotations

import pytest
import torch

from tests.standin_cuda import settings

from .order_programs import PROGRAMS, Program
from .processes import run_program

SEEDS = range(100)
LATE, AT_ONCE = -1, -2


def right(program: Program, *, wait: bool, seed: int) -> bool:
    with settings(seed=seed):
        found, expected = program(wait)
    return torch.equal(found, expected)


@pytest.mark.parametrize("name", PROGRAMS)
def test_with_the_wait_every_order_is_right(name: str) -> None:
    wrong = [seed for seed in (LATE, AT_ONCE, *SEEDS) if not right(PROGRAMS[name], wait=True, seed=seed)]
    assert not wrong


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_wait_some_order_is_wrong(name: str) -> None:
    wrong = [seed for seed in SEEDS if not right(PROGRAMS[name], wait=False, seed=seed)]
    assert len(wrong) >= 3, f"only seeds {wrong} of {len(SEEDS)} show it"


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_wait_a_device_that_does_all_at_once_is_right(name: str) -> None:
    """So it is the order that is wrong above, and a program tested on such a device is not tested."""
    assert right(PROGRAMS[name], wait=False, seed=AT_ONCE)


def test_a_seed_gives_the_same_order_each_time() -> None:
    """In processes of their own: how often PyTorch's allocators ask for events depends on what went before."""
    program = f"""
        from {__name__} import PROGRAMS, SEEDS, right
        program = PROGRAMS["an_upload_overwrites_what_a_kernel_still_reads"]
        print([right(program, wait=False, seed=seed) for seed in SEEDS])
    """
    first, second = (run_program(program) for _ in range(2))
    assert "True" in first.stdout, first.stderr
    assert "False" in first.stdout
    assert first.stdout == second.stdout


def test_work_of_one_stream_keeps_its_order() -> None:
    for seed in SEEDS:
        with settings(seed=seed):
            value = torch.ones(8, device="cuda")
            for _ in range(10):
                value.mul_(2).add_(1)
            assert value.tolist() == [2047.0] * 8


def test_kernels_do_not_run_when_they_are_issued() -> None:
    """Nor do they hold on to memory: what they compute with is there when they run, or is not."""
    into = torch.zeros(4).pin_memory()
    with settings(seed=LATE):
        value = torch.ones(4, device="cuda").mul_(3)
        into.copy_(value, non_blocking=True)
        assert into.tolist() == [0.0] * 4
        torch.cuda.synchronize()
        assert into.tolist() == [3.0] * 4
