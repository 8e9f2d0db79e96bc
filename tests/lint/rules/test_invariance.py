"""What must not change which rules fire: names of locals, casts, the order of properties, a try around the work."""

import ast
import textwrap

import pytest
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


class Rewritten(ast.NodeTransformer):
    """A block written in another way. Subclasses say how."""

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        if node.name == "__call__":
            node.body = self.call(node.body)
        return node

    def call(self, body):
        """The statements of ``__call__``, written in another way."""
        return [other for one in body for other in self.statement(one)]

    def statement(self, node):
        """A statement, written in another way; ``gets`` tells those that get the block state."""
        gets = isinstance(node, ast.Assign) and ast.unparse(node.value) == "self.get_block_state(state)"
        return self.get(node) if gets else [node]

    def get(self, node):
        return [node]


def parsed(text):
    return ast.parse(textwrap.dedent(text)).body


class Cast(Rewritten):
    def get(self, node):
        return parsed(f"{ast.unparse(node.targets[0])} = cast(Any, {ast.unparse(node.value)})")


class Annotated(Rewritten):
    def get(self, node):
        return parsed(f"{ast.unparse(node.targets[0])}: Any = {ast.unparse(node.value)}")


class Aliased(Rewritten):
    def get(self, node):
        return parsed(f"given = {ast.unparse(node.value)}\n{ast.unparse(node.targets[0])} = given")


class Unpacked(Rewritten):
    def get(self, node):
        return parsed(f"{ast.unparse(node.targets[0])}, nothing = {ast.unparse(node.value)}, None")


class Tried(Rewritten):
    def call(self, body):
        return [body[0], ast.Try(body[1:], [], [], [ast.Pass()])] if len(body) > 1 else body


class Hidden(Rewritten):
    """Components under another name, behind a cast."""

    def call(self, body):
        given = parsed("parts = cast(Any, components)")
        renamed = parsed("\n".join(map(ast.unparse, body)))
        names = [node for one in renamed for node in ast.walk(one) if isinstance(node, ast.Name)]
        read = [name for name in names if name.id == "components" and isinstance(name.ctx, ast.Load)]
        if not read:
            return body  # a body that does nothing (``...``) would be one that does something
        for name in read:
            name.id = "parts"
        stores = any(
            isinstance(node, ast.Name) and node.id == "components" and isinstance(node.ctx, ast.Store)
            for one in body
            for node in ast.walk(one)
        )
        return body if stores else [*given, *renamed]


class Reordered(Rewritten):
    def visit_ClassDef(self, node):
        methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
        node.body = [methods.pop() if isinstance(one, ast.FunctionDef) else one for one in node.body]
        return node


REWRITTEN = ((Cast, Tried, Reordered), (Annotated, Hidden), (Unpacked,), (Aliased,))
EXAMPLES = [
    pytest.param(rule, example, id=f"{rule.code}-{number}")
    for rule in all_rules()
    for number, example in enumerate((*rule.page.invalid, *rule.page.valid))
    if "def __call__" in example.source and rule.code != "MOD022"  # which is about a comment
]


@pytest.mark.parametrize(("rule", "example"), EXAMPLES)
def test_an_example_written_in_another_way(rule, example):
    def reported(source):
        analysis = analyse_source(source, example.path, [rule])
        assert not analysis.problems
        return sorted(finding.message for finding in analysis.findings if finding.level is not Level.OFF)

    plain = len(reported(example.source))
    for ways in REWRITTEN:
        tree = ast.parse(example.source)
        for way in ways:
            tree = ast.fix_missing_locations(way().visit(tree))
        text = f"from typing import Any, cast\n{ast.unparse(tree)}\n"
        assert len(reported(text)) == plain, text
