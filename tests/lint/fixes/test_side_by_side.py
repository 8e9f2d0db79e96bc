"""Blocks before and after their fixes, run side by side on generated inputs: they have to do the same."""

import itertools
import tempfile
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusers_offload_plus.lint.fixes.apply import fix_files
from diffusers_offload_plus.lint.rules.registry import catalogue
from diffusers_offload_plus.lint.running.run import Request
from diffusers_offload_plus.lint.settings.layers import Layer, Settings

pytest.importorskip("libcst")

HEADER = """
from types import SimpleNamespace

from diffusers.modular_pipelines import (
    InputParam, ModularPipelineBlocks, OutputParam, SequentialPipelineBlocks
)

SIZE = 128


def mask_of(thing):
    return getattr(thing, "mask", None)

"""
BY_HAND = """
def by_hand():
    return mask_of(SimpleNamespace(size=1))

"""
CLASS = """
class {name}({base}):
    model_name = "toy"
    default_size = 96

    @property
    def description(self):
        return "D."

{members}
"""
INPUTS = """
    @property
    def inputs(self):
        return [{inputs}]
"""
OUTPUTS = """
    @property
    def intermediate_outputs(self):
        return [OutputParam("y", description="Y.")]
"""
CALL = """
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
{lines}
        self.set_block_state(state, block_state)
        return components, state
"""
SUPER = """
    def __call__(self, components, state):
        components, state = super().__call__(components, state)
        return components, state
"""
HEIGHTS = [
    'InputParam("height", description="H.")',
    'InputParam("height", description="H.", default=None)',
    'InputParam("height", description="H.", default=256)',
    'InputParam("height", description="H.", required=True, default=64)',
]
MASKS = ['InputParam("mask", description="M.")', 'InputParam("mask", description="M.", default=3)']
LINES = [
    "if block_state.height is None:\n    block_state.height = 512",
    "if block_state.height is None:\n    block_state.height = SIZE",
    "if block_state.height is None:\n    block_state.height = self.default_size",
    "if not block_state.height:\n    block_state.height = 512",
    "block_state.height = block_state.height or 512",
    "block_state.height = 512 if block_state.height is None else block_state.height",
    "if block_state.mask is None:\n    block_state.mask = 7",
    "block_state.extra = (block_state.height, 1)",
    "mask = getattr(block_state, 'mask', None)",
    "block_state.mask = mask_of(block_state)",
    "block_state.known = hasattr(block_state, 'mask')",
]
heights, masks = st.sampled_from(HEIGHTS), st.sampled_from(MASKS)
inputs = st.builds("{}, {}".format, heights, masks)


@st.composite
def modules(draw):
    """A module with a block, perhaps an heir of it, and a sequence of both."""

    def call():
        lines = draw(st.lists(st.sampled_from(LINES), max_size=4, unique=True))
        lines.append("block_state.y = (block_state.height, block_state.mask)")
        indented = "\n".join(f"        {line}" for text in lines for line in text.split("\n"))
        return CALL.format(lines=indented)

    text = HEADER + (BY_HAND if draw(st.booleans()) else "")
    base = INPUTS.format(inputs=draw(inputs)) + OUTPUTS + call()
    text += CLASS.format(name="Base", base="ModularPipelineBlocks", members=base)
    names = ["Base"]
    if draw(st.booleans()):
        own = [
            draw(st.sampled_from(["", INPUTS.format(inputs=draw(inputs))])),
            draw(st.sampled_from(["", SUPER, "call"])),
        ]
        members = own[0] + (call() if own[1] == "call" else own[1])
        text += CLASS.format(name="Heir", base="Base", members=members)
        names = draw(st.permutations(["Base", "Heir"]))
    text += f"\n\nclass Both(SequentialPipelineBlocks):\n    block_classes = [{', '.join(names)}]\n"
    return text + f"    block_names = {[name.lower() for name in names]!r}\n"


def fixed(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blocks.py"
        path.write_text(text)
        chosen = Settings(catalogue(), [Layer(where="test", root=Path(folder), ignore=("MOD020",))])
        outcome = fix_files(Request(paths=[path], settings=chosen))
        return outcome.files[0].after if outcome.files else text


def run(text, height, mask):
    """What each block of a module leaves in the state, or the error that it raises."""
    module = types.ModuleType("blocks")
    exec(compile(text, "blocks.py", "exec"), module.__dict__)
    given_inputs = {name: value for name, value in {"height": height, "mask": mask}.items() if value != "absent"}
    found = {"by_hand": module.by_hand() if hasattr(module, "by_hand") else None}
    for name in ("Base", "Heir", "Both"):
        if not hasattr(module, name):
            continue
        try:
            state = getattr(module, name)().init_pipeline()(**given_inputs)
            found[name] = {key: state.get(key) for key in ("y", "height", "mask")}
        except Exception as error:
            found[name] = type(error).__name__
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(modules())
def test_fixed_blocks_do_what_they_did(text):
    after = fixed(text)
    if after == text:
        return
    for height, mask in itertools.product(["absent", None, 0, 32], ["absent", None, 5]):
        assert run(after, height, mask) == run(text, height, mask), after


SIMPLE = HEADER + CLASS.format(
    name="Base",
    base="ModularPipelineBlocks",
    members=INPUTS.format(inputs=f"{HEIGHTS[0]}, {MASKS[0]}")
    + OUTPUTS
    + CALL.format(
        lines="        if block_state.height is None:\n            block_state.height = 512\n"
        "        mask = mask_of(block_state)\n        block_state.y = (block_state.height, mask)"
    ),
)
HEIR = CLASS.format(name="Heir", base="Base", members=INPUTS.format(inputs=f"{HEIGHTS[0]}, {MASKS[0]}"))
OWN_CALL = CLASS.format(
    name="Heir", base="Base", members=CALL.format(lines="        block_state.y = block_state.height is None")
)


@pytest.mark.parametrize(
    ("more", "default_moved", "helper_changed"),
    [("", True, True), (HEIR, False, True), (OWN_CALL, False, True), (BY_HAND, True, False)],
    ids=["alone", "an heir with inputs", "an heir with a call", "a call by hand"],
)
def test_a_fix_needs_every_caller_and_heir(more, default_moved, helper_changed):
    after = fixed(SIMPLE + more)
    assert ("default=512" in after) == default_moved
    assert ('getattr(thing, "mask", None)' not in after) == helper_changed
