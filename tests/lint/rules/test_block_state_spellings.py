"""Every way to get at the block state is seen by every rule that asks about it."""

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse_source
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.rules.registry import all_rules

BLOCK = """
import copy
import functools
from contextlib import nullcontext
from functools import partial
from typing import Any, Optional, assert_type, cast

import torch
from diffusers.modular_pipelines import BlockState, InputParam, ModularPipelineBlocks, OutputParam


def identity_of(block, state):
    return block.get_block_state(state)


def with_extra(block, state):
    own = block.get_block_state(state)
    return 1, own


class Step(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def description(self):
        return "D."

    @property
    def inputs(self):
        return [InputParam("x", description="X.", required=True)]

    @property
    def intermediate_outputs(self):
        return [OutputParam("y", description="Y.")]

    def _own(self, state):
        return self.get_block_state(state)

    def _both(self, components, state):
        block_state = self.get_block_state(state)
        return components, block_state

    def _deep(self, state):
        return self._own(state)

    def _work(self, block_state):
        block_state.y = block_state.x
        block_state.z = 1
        block_state.w

    @torch.no_grad()
    def __call__(self, components, state):
{get}
        bs.y = bs.x
        bs.z = 1
        bs.w
        self.set_block_state(state, bs)
        return components, state
"""
SPELLINGS = {
    "plain": "bs = self.get_block_state(state)",
    "cast": "bs = cast(Any, self.get_block_state(state))",
    "cast by name": "bs = cast('BlockState', self.get_block_state(state))",
    "cast later": "raw = self.get_block_state(state)\nbs = cast(BlockState, raw)",
    "annotated": "bs: BlockState = self.get_block_state(state)",
    "annotated twice": "raw: Any = self.get_block_state(state)\nbs: BlockState = raw",
    "unpacked": "bs, device = self.get_block_state(state), None",
    "unpacked nested": "(bs, one), two = (self.get_block_state(state), 1), 2",
    "unpacked starred": "bs, *rest = self.get_block_state(state), 1, 2",
    "unpacked starred first": "*rest, bs = 1, 2, self.get_block_state(state)",
    "walrus": "if (bs := self.get_block_state(state)) is None:\n    raise ValueError",
    "walrus in use": "print((bs := self.get_block_state(state)).x)",
    "chained": "bs = other = self.get_block_state(state)",
    "conditional": "bs = self.get_block_state(state) if True else None",
    "or": "bs = None or self.get_block_state(state)",
    "with": "with nullcontext(self.get_block_state(state)) as bs:\n    pass",
    "for": "for bs in (self.get_block_state(state),):\n    pass",
    "helper": "bs = self._own(state)",
    "helper of a helper": "bs = self._deep(state)",
    "helper that returns several": "components, bs = self._both(components, state)",
    "function": "bs = identity_of(self, state)",
    "function that returns several": "_, bs = with_extra(self, state)",
    "inner function": "def own():\n    return self.get_block_state(state)\nbs = own()",
    "bound method": "get = self.get_block_state\nbs = get(state)",
    "partial": "get = functools.partial(self.get_block_state, state)\nbs = get()",
    "partial at once": "bs = partial(self.get_block_state, state)()",
    "super": "bs = super().get_block_state(state)",
    "alias": "one = self.get_block_state(state)\ntwo = one\nbs = two",
    "assert_type": "bs = assert_type(self.get_block_state(state), BlockState)",
    "branches": "if components:\n    bs = self.get_block_state(state)\nelse:\n    bs = self._own(state)",
    "try": "try:\n    bs = self.get_block_state(state)\nfinally:\n    pass",
}
EXPECTED = {"MOD013": "bs.z = 1", "MOD031": "bs.w"}


def found(source):
    findings = analyse_source(source, "project/step.py", all_rules()).findings
    return {(one.code, source.split("\n")[one.line - 1].strip()) for one in findings if one.level is not Level.OFF}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_the_block_state_is_known(spelling):
    get = "\n".join(f"        {line}" for line in spelling.split("\n"))
    shown = found(BLOCK.format(get=get))
    assert {code: line for code, line in shown if code in EXPECTED} == EXPECTED
    assert {code for code, _ in shown} - {"MOD013", "MOD031", "MOD046"} == set()


@pytest.mark.parametrize(
    "call",
    [
        "self._work(bs)",
        "self._work(block_state=bs)",
        "partial(self._work, bs)()",
        "work = functools.partial(self._work, block_state=bs)\nwork()",
        "Step._work(self, bs)",
        "self._work(cast(Any, bs))",
    ],
)
def test_a_helper_is_followed(call):
    lines = f"bs = self.get_block_state(state)\n{call}\nself.set_block_state(state, bs)\nreturn components, state"
    text = BLOCK.format(get="\n".join(f"        {line}" for line in lines.split("\n")))
    text = text.partition("        bs.y = bs.x")[0]
    assert {code: line for code, line in found(text) if code in EXPECTED} == {
        "MOD013": "block_state.z = 1",
        "MOD031": "block_state.w",
    }


@pytest.mark.parametrize(
    "call", ["use(self.get_block_state(state))", "kept = [self.get_block_state(state)]", "use(vars(bs))", "use(*[bs])"]
)
def test_what_is_handed_on_counts_as_used(call):
    get = f"        bs = self.get_block_state(state)\n        {call}\n        bs.y = 1\n"
    text = BLOCK.format(get=get).replace("        bs.y = bs.x\n        bs.z = 1\n        bs.w\n", "")
    assert "MOD039" not in {code for code, _ in found(text)}
