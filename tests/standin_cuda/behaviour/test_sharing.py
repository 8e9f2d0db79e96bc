"""Memory and events of other processes, and functions of the host in the order of a stream."""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch

from tests.standin_cuda import settings

from .processes import run_program

LATE = -1
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def launch_host_function(function: object, stream: torch.cuda.Stream) -> None:
    code = ctypes.CDLL(None).cudaLaunchHostFunc(ctypes.c_void_p(stream.cuda_stream), function, None)
    assert code == 0


def test_a_tensor_is_sent_to_another_process() -> None:
    done = run_program(
        """
        import torch, torch.multiprocessing as mp
        from tests.standin_cuda.behaviour.test_sharing import double

        if __name__ == "__main__":
            context = mp.get_context("spawn")
            there, back = context.Queue(), context.Queue()
            process = context.Process(target=double, args=(there, back))
            process.start()
            value = torch.zeros(1000, device="cuda")
            value.add_(3)
            there.put(value)
            assert back.get() == 3000.0
            assert value.sum().item() == 6000.0, value
            there.put(None)
            returned = back.get()
            assert returned.sum().item() == 5000.0
            del returned
            there.put(None)
            process.join(60)
            print(process.exitcode)
        """
    )
    assert done.stdout == "0\n", done.stderr


def double(there: torch.multiprocessing.Queue, back: torch.multiprocessing.Queue) -> None:
    value = there.get()
    total = value.sum().item()
    value.mul_(2)
    torch.cuda.synchronize()
    back.put(total)
    there.get()
    mine = torch.full((1000,), 5.0, device="cuda")
    back.put(mine)
    there.get()


def test_an_event_is_shared_with_another_process() -> None:
    done = run_program(
        """
        import torch, torch.multiprocessing as mp
        from tests.standin_cuda.behaviour.test_sharing import record

        if __name__ == "__main__":
            context = mp.get_context("spawn")
            answers = context.Queue()
            event = torch.cuda.Event(enable_timing=False, interprocess=True)
            event.record()
            value = torch.zeros(10, device="cuda")
            process = context.Process(target=record, args=(event.ipc_handle(), value, answers))
            process.start()
            assert answers.get() == "recorded"
            event.synchronize()
            torch.cuda.current_stream().wait_event(event)
            assert event.query()
            assert value.tolist() == [4.0] * 10
            answers2 = value + 1
            process.join(60)
            print(process.exitcode)
        """,
        seed=2,
    )
    assert done.stdout == "0\n", done.stderr


def record(handle: bytes, value: torch.Tensor, answers: torch.multiprocessing.Queue) -> None:
    event = torch.cuda.Event.from_ipc_handle(value.device, handle)
    value.fill_(4)
    event.record()
    answers.put("recorded")
    del value


def test_a_host_function_runs_in_the_order_of_its_stream() -> None:
    source, seen = torch.zeros(4).pin_memory(), []
    function = HOST_FUNCTION(lambda _: seen.append(source.tolist()))
    for seed in (LATE, *range(20)):
        with settings(seed=seed):
            seen.clear()
            source.zero_()
            value = torch.full((4,), 3.0, device="cuda")
            torch.cuda.synchronize()
            source.copy_(value, non_blocking=True)
            launch_host_function(function, torch.cuda.current_stream())
            source_again = value * 2
            source.copy_(source_again, non_blocking=True)
            assert seed != LATE or not seen
            torch.cuda.synchronize()
            assert seen == [[3.0] * 4]


def test_a_host_function_may_take_a_lock_that_a_waiting_thread_does_not_need() -> None:
    """It runs without the lock of the runtime: another thread can go on issuing work meanwhile."""
    gate, inside = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        inside.set()
        assert gate.wait(30)

    function = HOST_FUNCTION(wait)
    side = torch.cuda.Stream()
    launch_host_function(function, side)
    waiting = threading.Thread(target=side.synchronize)
    waiting.start()
    assert inside.wait(30)
    assert (torch.ones(4, device="cuda") + 1).tolist() == [2.0] * 4
    gate.set()
    waiting.join(30)
    assert not waiting.is_alive()


@pytest.mark.parametrize("seed", [LATE, 3])
def test_a_stream_that_waits_for_a_host_function(seed: int) -> None:
    with settings(seed=seed):
        source = torch.zeros(4).pin_memory()
        function = HOST_FUNCTION(lambda _: (source.fill_(8), None)[1])
        side = torch.cuda.Stream()
        launch_host_function(function, side)
        torch.cuda.current_stream().wait_stream(side)
        assert source.to("cuda", non_blocking=True).tolist() == [8.0] * 4
