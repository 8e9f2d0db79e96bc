"""What must not change which rules fire: names of locals, casts, the order of properties, a try around the work."""

import textwrap

from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_offload_plus.lint.analysis.analyse import analyse_source
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.rules.registry import all_rules

HEADER = """
from typing import Any, cast

import torch
from diffusers.modular_pipelines import ComponentSpec, ConfigSpec, InputParam, ModularPipelineBlocks, OutputParam
"""
PROPERTIES = {
    "description": 'return "D."',
    "expected_components": 'return [ComponentSpec("vae", torch.nn.Module), ComponentSpec("guider", object)]',
    "expected_configs": 'return [ConfigSpec("size", 1)]',
    "inputs": 'return [InputParam("x", description="X."), InputParam("height", description="H."), '
    'InputParam.template("generator")]',
    "intermediate_outputs": 'return [OutputParam("y", description="Y.")]',
}
# {bs} is the block state, {a} and {b} are locals; each line is a statement, and what it says may break a rule.
STATEMENTS = [
    "{bs}.y = {bs}.x",
    "{bs}.scratch = 1",
    "{bs}.y = {bs}.missing",
    "{bs}.y = {bs}.y + 1",
    "if {bs}.height is None:\n    {bs}.height = 512",
    "{bs}.height = {bs}.height or 512",
    "{a} = {bs}.height\nif {a} is None:\n    {a} = 512",
    "{a} = getattr({bs}, 'x', None)",
    "{a} = hasattr(components, 'vae')",
    "{a} = components.vae\n{a}.to('cpu')",
    "{a} = components.vae\n{b} = {a}.encode({bs}.x)",
    "components.guider.scale = 2",
    "{a} = components.guider\n{a}.scale = 2",
    "{a} = components.config.missing",
    "{a} = components.transformer.config",
    "state.set('z', {bs}.x)",
    "{a} = state\n{a}.set('z', 1)",
    "{a} = state.get('q')",
    "self.kept = {bs}.x",
    "{a} = torch.randn(4, device=components.vae.device)",
    "{a} = torch.randn(4, generator={bs}.generator, device={bs}.generator.device)",
    "if components.config.is_turbo:\n    {a} = 1",
    "{a} = [{bs}.x for {b} in range(3)]",
    "for {a} in range(3):\n    {bs}.y = {a}",
    "{a}, {b} = {bs}.x, {bs}.generator",
    "{a} = lambda {b}: {bs}.x",
    "with torch.no_grad():\n    {bs}.y = components.vae.decode({bs}.x)",
    "components.update_components(vae=None)",
]
NAMES = st.lists(
    st.sampled_from(["bs", "block_state", "own", "tmp", "one", "two", "data", "values", "v", "current", "held"]),
    min_size=3,
    max_size=3,
    unique=True,
)


def source(statements, names, *, order, cast_state, wrapped, saved):
    bs, a, b = names
    get = "self.get_block_state(state)"
    lines = [line.format(bs=bs, a=a, b=b) for line in statements]
    lines += [f"self.set_block_state(state, {bs})"] if saved else []
    work = "\n".join([*lines, "return components, state"])
    if wrapped:
        work = f"try:\n{textwrap.indent(work, '    ')}\nfinally:\n    pass"
    if cast_state:
        get = f"cast(Any, {get})"
        work = f"components = cast(Any, components)\n{work}"
    members = "".join(f"\n    @property\n    def {name}(self):\n        {PROPERTIES[name]}\n" for name in order)
    call = textwrap.indent(f"{bs} = {get}\n{work}", " " * 8)
    return (
        f'{HEADER}\n\nclass Step(ModularPipelineBlocks):\n    model_name = "toy"\n{members}\n'
        f"    @torch.no_grad()\n    def __call__(self, components, state):\n{call}\n"
    )


def fired(text):
    analysis = analyse_source(text, "project/step.py", all_rules())
    assert not analysis.problems, text
    return {finding.code for finding in analysis.findings if finding.level is not Level.OFF}


@settings(max_examples=60)
@given(
    statements=st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=5),
    names=NAMES,
    order=st.permutations(list(PROPERTIES)),
    cast_state=st.booleans(),
    wrapped=st.booleans(),
    saved=st.booleans(),
)
def test_what_must_not_matter(statements, names, order, cast_state, wrapped, saved):
    plain = source(
        statements, ["block_state", "a", "b"], order=list(PROPERTIES), cast_state=False, wrapped=False, saved=saved
    )
    changed = source(statements, names, order=order, cast_state=cast_state, wrapped=wrapped, saved=saved)
    assert fired(changed) == fired(plain), changed


def test_each_statement_is_seen_for_what_it_is():
    """The statements break rules, so that there is something to compare."""
    broken = set()
    for statement in STATEMENTS:
        broken |= fired(
            source([statement], ["bs", "a", "b"], order=list(PROPERTIES), cast_state=False, wrapped=False, saved=True)
        )
    assert {
        *("MOD004", "MOD007", "MOD012", "MOD013", "MOD014", "MOD016", "MOD017", "MOD019"),
        *("MOD029", "MOD030", "MOD031", "MOD039", "MOD043", "MOD046", "MOD047"),
    } <= broken
