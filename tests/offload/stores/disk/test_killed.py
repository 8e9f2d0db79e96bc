"""Processes killed in the middle of set-up, and many at work in one directory."""

from __future__ import annotations

import collections
import datetime
import json
import os
import platform
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from tests.offload.stores.disk import children, forked
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    assert_whole,
    objects,
    offload,
    temporaries,
    twin_of,
)
from tests.support.models import Stack, seeded

CPU = torch.device("cpu")


def kill_at_random(folder: Path, times: int, seed: int) -> dict[str, int]:
    """Kill set-ups of ever other models at random moments; how far they had come."""
    draw = random.Random(seed)
    child = forked.Child(children.keep, str(folder / "first"), 0)
    assert child.hear() == "ready"
    duration = child.outcome().expect()
    found: collections.Counter[str] = collections.Counter()
    for number in range(times):
        directory = folder / str(number // 20)
        before = set(objects(directory))
        child = forked.Child(children.keep, str(directory), number)
        assert child.hear() == "ready"
        time.sleep(draw.uniform(0, 2 * duration))
        at_work = child.kill()
        half, new = temporaries(directory), set(objects(directory)) - before
        listed = [json.loads(p.read_text())["objects"] for p in (directory / "manifests").glob("*.json")]
        known = {name for names in listed for name in names}
        stage = "file without manifest" if new and new.isdisjoint({directory / "objects" / n for n in known}) else ""
        found[stage or ("half-written file" if half else "manifest" if new else "nothing yet")] += 1
        found["killed at work"] += at_work
        if directory.exists():
            assert_whole(directory)
        model = seeded(Stack, number)
        twin = twin_of(model, CPU)
        offload(model, CPU, directory, keep=True)
        assert_right(model, twin, CPU, passes=1)
        assert_state(model, twin)
        assert temporaries(directory) == []
        assert_whole(directory)
        if number % 20 == 19:
            shutil.rmtree(directory)
    return dict(found)


def as_table(found: dict[str, int], times: int) -> str:
    """A page's worth of what was found, in Markdown."""
    where = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}"
    found = dict(found)
    at_work = found.pop("killed at work")
    head = (
        f"{times:,} set-ups that keep their files, killed at random moments, {datetime.date.today()}, {where}, "
        f"torch {torch.__version__}. {at_work:,} were still at work. After each, all kept files were whole, the next "
        "set-up removed what was left half done, and the model gave the right output.\n"
    )
    rows = [f"| {stage} | {count:,} |" for stage, count in sorted(found.items(), key=lambda item: -item[1])]
    return "\n".join([head, "| left behind | times |", "|---|---|", *rows])


def test_a_process_killed_while_writing(tmp_path: Path) -> None:
    """Stock leaves orphans that nothing ever cleans."""
    found = kill_at_random(tmp_path, 20, seed=time.time_ns() % 1000)
    assert found["killed at work"] > 2, found
    assert sum(found.values()) == 20 + found["killed at work"]
    assert "| manifest |" in as_table({**found, "manifest": 1}, 20)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_processes_killed_while_writing(tmp_path: Path) -> None:
    found = kill_at_random(tmp_path, 1000, seed=0)
    print("\n" + as_table(found, 1000))
    assert found["killed at work"] > 300, found


@pytest.mark.parametrize("same", [True, False], ids=["the same model", "different models"])
def test_eight_processes_on_one_directory(same: bool, tmp_path: Path) -> None:
    at = time.time() + 1.0
    processes = [
        forked.Child(children.keep_when_told, str(tmp_path), 0 if same else number, at) for number in range(8)
    ]
    for process in processes:
        process.outcome().expect()
    assert temporaries(tmp_path) == []
    assert_whole(tmp_path)
    assert len(objects(tmp_path)) == (1 if same else 8)
    assert forked.run(children.keep_when_told, str(tmp_path), 0, 0.0).expect() == 0


def test_killed_at_every_step(tmp_path: Path) -> None:
    """The same without chance: from some step on nothing reaches the disk, the cleaning up neither."""
    for stop in range(1, 60):
        directory = tmp_path / str(stop)
        model = seeded(lambda: Stack(1))
        twin = twin_of(model, CPU)
        ended = forked.run(children.keep_until, str(directory), stop).expect()
        if directory.exists():
            assert_whole(directory)
        offload(model, CPU, directory, keep=True)
        assert_right(model, twin, CPU, passes=1)
        assert temporaries(directory) == []
        assert_whole(directory)
        if ended:
            assert stop > 12
            return
    raise AssertionError("set-up never ended")
