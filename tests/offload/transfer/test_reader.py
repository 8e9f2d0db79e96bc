"""The reading thread: order, errors, cancelling, and a disk that does not answer."""

from __future__ import annotations

import logging
import threading
import weakref

import pytest
import torch

from diffusers_offload_plus.offload.transfer import reader as module
from diffusers_offload_plus.offload.transfer.reader import Reader


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_readings_are_done_in_order_by_another_thread(reader: Reader) -> None:
    done: list[tuple[int, str]] = []
    readings = [
        reader.submit(lambda n=n: done.append((n, threading.current_thread().name)), f"reading {n}") for n in range(20)
    ]
    for reading in readings:
        reading.finish()
    assert [n for n, _ in done] == list(range(20))
    assert all(name.startswith("offload-plus-reader") for _, name in done)
    reader.close()


def test_an_error_comes_up_where_the_bytes_are_needed(reader: Reader) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error", "/disk/weights")

    reading = reader.submit(fail, "bytes of /disk/weights")
    with pytest.raises(OSError, match="/disk/weights") as caught:
        reading.finish()
    assert caught.value.errno == 5
    assert reader.submit(lambda: 7, "the next").finish() == 7
    reader.close()


def test_memory_is_let_go_when_a_reading_is_over_or_cancelled(reader: Reader) -> None:
    gate = threading.Event()
    reader.submit(lambda: gate.wait(), "the gate")
    slabs = [torch.empty(10) for _ in range(2)]
    storages = [weakref.ref(slab) for slab in slabs]
    readings = [reader.submit(slab.zero_, "a slab") for slab in slabs]
    slabs.clear()
    assert readings[0].cancel() is None
    assert storages[0]() is None, "the executor still has the reading in its queue, but not the memory"
    gate.set()
    result = readings[1].finish()
    del result
    readings.clear()
    reader.drain()
    reader.close()
    assert storages[1]() is None


def test_a_disk_that_does_not_answer_is_named_in_the_log(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.05)
    gate = threading.Event()
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    with caplog.at_level(logging.WARNING, "diffusers_offload_plus"):
        assert reader.submit(gate.wait, "4096 bytes of /far/away").finish() is True
    assert "4096 bytes of /far/away" in caplog.text
    assert len(caplog.records) >= 2
    assert reader.waited >= 0.2
    reader.close()
