"""Rules in several processes: the same findings, and nothing that goes wrong in one of them is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from diffusers_offload_plus.lint import analysis, workers
from diffusers_offload_plus.lint.analysis import analyse
from diffusers_offload_plus.lint.project.location import installed_diffusers
from diffusers_offload_plus.lint.rules import all_rules
from diffusers_offload_plus.lint.workers import available_processes, spread


def collected(tasks: Iterable[int]) -> list[tuple[int, int]]:
    return [(os.getpid(), task) for task in tasks]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes forked so far."""
    found: list[int] = []
    fork = os.fork

    def noted() -> int:
        child = fork()
        if child:
            found.append(child)
        return child

    monkeypatch.setattr(workers.os, "fork", noted)
    return found


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_task_is_taken_once(processes: int) -> None:
    taken = spread(range(200), collected, processes)
    assert len(taken) == processes
    assert len({pid for part in taken for pid, _ in part}) <= processes
    assert sorted(task for part in taken for _, task in part) == list(range(200))


def test_nothing_to_do() -> None:
    assert spread([], collected, 2) == [[]]


def test_a_child_that_fails_is_an_error(capfd: pytest.CaptureFixture[str], forks: list[int]) -> None:
    here = os.getpid()

    def work(tasks: Iterable[int]) -> list[int]:
        if os.getpid() != here:
            raise ValueError("of no use")
        return list(tasks)

    with pytest.raises(RuntimeError, match="ended without a result"):
        spread(range(5), work, 2)
    assert "ValueError: of no use" in capfd.readouterr().err
    assert forks
    for child in forks:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def test_a_child_that_is_killed_is_an_error() -> None:
    here = os.getpid()

    def work(tasks: Iterable[int]) -> list[int]:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(tasks)

    with pytest.raises(RuntimeError, match="ended without a result"):
        spread(range(5), work, 3)


def test_a_failure_of_this_process_leaves_no_child(forks: list[int]) -> None:
    here = os.getpid()

    def work(tasks: Iterable[int]) -> list[int]:
        if os.getpid() == here:
            raise ValueError("of no use")
        return list(tasks)

    with pytest.raises(ValueError, match="of no use"):
        spread(range(5), work, 2)
    assert forks
    for child in forks:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def test_a_process_with_threads_is_not_forked() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert available_processes() == 1
    finally:
        done.set()
        thread.join()


def test_the_findings_are_the_same(monkeypatch: pytest.MonkeyPatch, forks: list[int]) -> None:
    diffusers = installed_diffusers()
    assert diffusers is not None
    family = diffusers / "modular_pipelines" / "flux2"
    alone = analyse([family], all_rules())
    monkeypatch.setattr(analysis, "_MANY_FILES", 1)
    together = analyse([family], all_rules(), processes=3)
    assert len(forks) == 2
    assert together.findings == alone.findings
    assert alone.findings


def test_what_is_nested_too_deeply_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep.py").write_text("x = " + "1 + " * 20000 + "1\n")
    alone = analyse([tmp_path], all_rules())
    monkeypatch.setattr(analysis, "_MANY_FILES", 1)
    assert analyse([tmp_path], all_rules(), processes=2).problems == alone.problems
