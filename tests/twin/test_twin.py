"""Runs the twins: a few hundred sequences in ``make test``, thousands in ``make soak``."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.meter import meter_for
from tests.twin.machine import CHOSEN, COVERAGE, LEVELS, OPERATIONS, TIERS
from tests.twin.modules import Dense
from tests.twin.surroundings import AROUND, Surrounded
from tests.twin.trees import Node, Recipe

SEQUENCES = int(os.environ.get("OFFLOAD_PLUS_SEQUENCES", "200"))
LENGTH = 30
EVERY = (*OPERATIONS, *AROUND)


def table() -> str:
    """How often each operation ran under each tier and level."""
    cells = [(tier, level) for tier in TIERS for level in LEVELS]
    lines = [f"{'':14}" + "".join(f"{tier + ' ' + level.removesuffix('_level'):>20}" for tier, level in cells)]
    lines += [
        f"{op:14}" + "".join(f"{COVERAGE[op, *cell]:>20}" for cell in cells) for op in (*OPERATIONS, *AROUND, "train")
    ]
    return "\n".join(lines)


def each_operation_once(policy: str) -> None:
    """So that no cell of the table depends on what the random sequences happen to be."""
    twins = Surrounded()
    group = Node("group", (Node("dense"), Node("normed")))
    twins.start(Recipe((Node("dense"), Node("counting"), group, Node("scale")), (Node("dense"),), 0), policy)
    steps: list[Callable[[], object]] = [
        twins.forward, twins.forward_grad, lambda: twins.skipping(frozenset({1}), True), twins.deepcopy,
        lambda: twins.part(2), twins.encode, lambda: twins.failing(2, ValueError),
        lambda: twins.failing(3, KeyboardInterrupt), lambda: twins.edit(1), lambda: twins.edit_data(2),
        lambda: twins.repoint(0), lambda: twins.write_onloaded(3, True), twins.load, twins.cast, twins.save,
        lambda: twins.add(Dense, False), lambda: twins.remove(2, True), twins.replace, lambda: twins.replan(policy),
        twins.disable, lambda: twins.enable_again(policy), twins.forward,
    ]  # fmt: skip
    steps[1:1] = [
        lambda: twins.hold("state dict"), lambda: twins.hold("parameters"), twins.forward,
        lambda: twins.write_held(0, 3, True), lambda: twins.write_held(1, 5, True), twins.forward, twins.drop_held,
        lambda: twins.elsewhere("stream", False), lambda: twins.elsewhere("thread and stream", False),
        lambda: twins.question(0),
    ]  # fmt: skip
    steps[-3:-3] = [lambda: twins.cramped(8), twins.forward] if twins.meter.exact else []
    for step in steps:
        step()
        twins.agree()
    twins.teardown()


@pytest.mark.parametrize("policy", sorted(CHOSEN))
def test_training_beside_the_twin(policy: str, device: torch.device) -> None:
    Surrounded.device, Surrounded.meter = device, meter_for(device)
    for inside in (False, True):
        twins = Surrounded()
        twins.start(Recipe((Node("dense"), Node("scale"), Node("lists"), Node("dense")), (Node("dense"),), 0), policy)
        for in_backward in (False, True, False):
            twins.train(in_backward, inside)
            twins.agree()
            twins.forward()
            twins.agree()
        twins.teardown()


TIED = Node("group", (Node("tied"),))
FOUND = {  # by random sequences
    "the limit of a pass that measures is of the sizes before a cast": (
        (Node("attending"),), "auto-block", ["cast", "encode", "forward", "cast", "encode"],
    ),
    "lent copies are of the sizes after a cast, and take no free slot": (
        (Node("dense"), TIED, Node("dense"), Node("dense")), "partly-block", ["cast", "forward", "part 92"],
    ),
    "a smaller model has a smaller limit from its next pass on": (
        (Node("strided"), Node("group", (Node("dense"), Node("dense")))), "auto-block", ["remove 1 0", "forward"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_sequences_that_once_failed(case: str, device: torch.device) -> None:
    Surrounded.device = device
    Surrounded.meter = meter_for(device)
    blocks, policy, steps = FOUND[case]
    twins = Surrounded()
    twins.start(Recipe(blocks, (), 0), policy)
    twins.agree()
    for step in steps:
        name, *numbers = step.split()
        getattr(twins, name)(*map(int, numbers))
        twins.agree()
    twins.teardown()


@pytest.mark.timeout(0)
def test_the_offloaded_model_is_its_unoffloaded_twin(device: torch.device) -> None:
    Surrounded.device = device
    Surrounded.meter = meter_for(device)
    for policy in sorted(CHOSEN):
        each_operation_once(policy)
    run_state_machine_as_test(
        Surrounded,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=LENGTH,
            deadline=None,
            derandomize=SEQUENCES <= 200,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            report_multiple_bugs=False,
        ),
    )
    print(table())
    empty = [
        (op, tier, level)
        for op in (*OPERATIONS, *AROUND)
        for tier in TIERS
        for level in LEVELS
        if not COVERAGE[op, tier, level]
    ]
    assert not empty, f"never tried: {empty}"
