"""Rules in several processes: the same findings, and nothing that goes wrong in one of them is lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from diffusers_offload_plus.lint.analysis import analyse as analyse_module
from diffusers_offload_plus.lint.analysis.analyse import analyse
from diffusers_offload_plus.lint.analysis.workers import available_processes, spread
from diffusers_offload_plus.lint.reading.location import installed_diffusers
from diffusers_offload_plus.lint.rules.registry import all_rules


def numbered(task: int) -> tuple[int, int]:
    return os.getpid(), task


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

    monkeypatch.setattr(os, "fork", noted)
    return found


def assert_no_child_is_left(forks: list[int]) -> None:
    assert forks
    for child in forks:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_task_is_done_once_and_results_keep_their_order(processes: int, forks: list[int]) -> None:
    taken = spread(range(200), numbered, processes)
    assert [task for _, task in taken] == list(range(200))
    assert len(forks) == (processes if processes > 1 else 0)
    assert {pid for pid, _ in taken} <= {os.getpid(), *forks}


def test_nothing_to_do(forks: list[int]) -> None:
    assert spread([], numbered, 2) == []
    assert not forks


def test_a_child_that_fails_is_an_error(forks: list[int]) -> None:
    def work(task: int) -> int:
        if task == 3:
            raise ValueError("of no use")
        return task

    with pytest.raises(ValueError, match="of no use"):
        spread(range(5), work, 2)
    assert_no_child_is_left(forks)


def test_a_child_that_is_killed_is_an_error(forks: list[int]) -> None:
    here = os.getpid()

    def work(task: int) -> int:
        if task == 3 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with pytest.raises(RuntimeError, match="ended without a result"):
        spread(range(200), work, 3)
    assert_no_child_is_left(forks)


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
    monkeypatch.setattr(analyse_module, "_MANY_FILES", 1)
    together = analyse([family], all_rules(), processes=3)
    assert len(forks) == 3
    assert together.findings == alone.findings
    assert alone.findings


def test_what_is_nested_too_deeply_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep.py").write_text("x = " + "1 + " * 20000 + "1\n")
    alone = analyse([tmp_path], all_rules())
    monkeypatch.setattr(analyse_module, "_MANY_FILES", 1)
    assert analyse([tmp_path], all_rules(), processes=2).problems == alone.problems
