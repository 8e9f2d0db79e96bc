"""Ranks of one machine have one host copy of equal weights, whatever each of them does, and however it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.offload.stores.shared import programs
from tests.offload.stores.shared.ranks import Ranks, eventually, names, run

ACCELERATOR = pytest.mark.parametrize("where", ["cpu", "sim"])
DEPTH = 20  # 320 MiB


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    eventually(lambda: names(tmp_path) == [])


@pytest.mark.parametrize("world", [2, 4])
@ACCELERATOR
def test_ranks_cost_one_model(where: str, world: int, tmp_path: Path) -> None:
    found = run(world, tmp_path, programs.share, where, DEPTH)
    nbytes = found[0]["nbytes"]
    assert all(each["right"] for each in found)
    assert all(each["memory"] == found[0]["memory"] for each in found)
    assert all(each["report"] == ("shared host", nbytes, nbytes, 0) for each in found)
    assert all(each["moved"] == (0 if where == "cpu" else 2 * nbytes) for each in found), "a CPU uses them in place"
    taken = sum(each["taken"] for each in found)
    print(f"{world} ranks on {where}: {taken / nbytes:.4f} of {nbytes} bytes")
    assert 0.98 * nbytes < taken <= 1.02 * nbytes


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        # With "--cpu" it leaves ranks to MPI; so they are started as they are for GPUs.
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["torchrun", "accelerate launch"],
)
def test_as_users_launch_ranks(launcher: list[str], tmp_path: Path) -> None:
    """Nothing of ours is told that there are ranks: the launcher's environment is."""
    script, file = str(Path(programs.__file__).with_name("launched.py")), tmp_path / "found"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, script, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0]["right"]
    assert found[0]["shared"] >= found[0]["bytes"]
    assert len(found[0]["memory"]) == 1
    assert found[0]["memory"] != [0]


@ACCELERATOR
def test_the_rank_that_made_the_memory_is_killed(where: str, tmp_path: Path) -> None:
    ranks = Ranks(3, tmp_path, programs.one_goes, where)
    assert ranks.hear(0) == "ready"
    ranks.tell(1, "offload")
    assert ranks.hear(1) == "ready"
    answered = len(set(names(tmp_path)))
    assert answered
    ranks.kill(0)
    eventually(lambda: len(set(names(tmp_path))) == answered)  # the one that has the memory answers for it now
    ranks.tell(2, "come")
    ranks.tell(2, "offload")
    assert ranks.hear(2) == "ready"
    for number in (1, 2):
        ranks.tell(number, "run again")
    memories = [ranks.children[number].outcome().expect() for number in (1, 2)]
    assert memories[0] == memories[1]
    assert 0 not in memories[0]


def test_the_rank_that_fills_the_memory_is_killed(tmp_path: Path) -> None:
    ranks = Ranks(3, tmp_path, programs.killed_while_filling)
    assert ranks.hear(0) == "stuck"
    for number in (1, 2):
        ranks.tell(number, "offload")
        assert ranks.hear(number) == "waiting"
    ranks.kill(0)
    for number in (1, 2):
        assert ranks.hear(number) == "shared"
    for number in (1, 2):
        ranks.tell(number, "end")
    memories = [ranks.children[number].outcome().expect() for number in (1, 2)]
    assert memories[0] == memories[1]
    assert 0 not in memories[0]


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    ranks = Ranks(2, tmp_path, programs.stuck_while_filling)
    assert ranks.hear(0) == "stuck"
    ranks.tell(1, "offload")
    assert ranks.hear(1) == "done"
    memory, why = ranks.children[1].outcome().expect()
    assert memory == {0}
    assert "made no progress" in why
    ranks.tell(0, "go on")
    assert ranks.hear(0) == "done"
    memory, why = ranks.children[0].outcome().expect()
    assert 0 not in memory
    assert why == ""


@ACCELERATOR
def test_one_rank_offloads_alone(where: str, tmp_path: Path) -> None:
    memory, nothing = run(2, tmp_path, programs.alone, where)
    assert 0 not in memory
    assert nothing is None


@ACCELERATOR
def test_ranks_with_other_weights(where: str, tmp_path: Path) -> None:
    memories = run(4, tmp_path, programs.different, where)
    assert memories[0] == memories[2]
    assert memories[1] == memories[3]
    assert not memories[0] & memories[1]
    assert all(len(memory) == 1 and 0 not in memory for memory in memories)


@pytest.mark.parametrize("how", ["in place", "data", "onloaded"])
@ACCELERATOR
def test_what_one_rank_writes_is_its_own(where: str, how: str, tmp_path: Path) -> None:
    untouched, changed = run(2, tmp_path, programs.written, where, how)
    assert untouched == 0
    assert changed > 0


@ACCELERATOR
def test_ranks_that_train(where: str, tmp_path: Path) -> None:
    first, second = run(2, tmp_path, programs.trained, where)
    assert first != second


@ACCELERATOR
def test_weights_replaced_after_sharing(where: str, tmp_path: Path) -> None:
    found = run(3, tmp_path, programs.replaced, where)
    rests, blocks = zip(*found, strict=True)
    assert len(set(map(frozenset, rests))) == 1
    assert blocks[0] == blocks[1] != blocks[2]
    assert all(0 not in memory for memory in (*rests, *blocks))


@ACCELERATOR
def test_disabled_on_one_rank(where: str, tmp_path: Path) -> None:
    (first, _), *others = found = run(3, tmp_path, programs.disabled, where)
    assert first == {0}
    assert len({frozenset(memory) for memory, _ in others}) == 1
    assert all(0 not in memory for memory, _ in others)
    assert [left for _, left in found] == [0, 0, 0]


@ACCELERATOR
def test_a_limit_on_files(where: str, tmp_path: Path) -> None:
    """It holds for memory without a name too."""
    (first, why), (second, nothing) = run(2, tmp_path, programs.limited, where, 100_000)
    assert first == {0}
    assert "ulimit -f" in why
    assert 0 not in second
    assert "not shared" not in nothing


@pytest.mark.parametrize("groups", [0, 3])
@ACCELERATOR
def test_memory_runs_out(where: str, groups: int, tmp_path: Path) -> None:
    """What has been moved stays where it is, the rest gets memory of the rank's own; nobody else has to wait."""
    for memories, why in run(2, tmp_path, programs.full, where, groups):
        assert memories == 1 + bool(groups)
        assert "No space left on device" in why


def test_memory_while_weights_move(tmp_path: Path) -> None:
    """Never more than the model and a group, and a rank that finds the memory there ends with nothing of its own."""
    block = 4 * programs.Wide.WIDTH**2
    for nbytes, peak, after in run(2, tmp_path, programs.peak, 8):
        assert peak <= nbytes + 1.5 * block
        assert after < block / 2


@pytest.mark.parametrize("order", ["before", "after"])
@ACCELERATOR
def test_context_parallelism(where: str, order: str, tmp_path: Path) -> None:
    memories = run(2, tmp_path, programs.context_parallel, where, order)
    assert memories[0] == memories[1]
    assert len(memories[0]) == 1
