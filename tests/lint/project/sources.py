"""Strategies of sources that mix the shapes blocks are written in, right and wrong ones."""

from hypothesis import strategies as st

NAMES = st.sampled_from(["latents", "prompt_embeds", "guidance_scale", "image", "height", "mask", "x"])
LOCALS = st.sampled_from(["value", "vae", "guider", "out", "block_state", "components", "state"])
COMPONENTS = st.sampled_from(["vae", "guider", "transformer", "scheduler", "text_encoder"])
CONSTANTS = st.sampled_from(["None", "1", "0.5", "'pil'", "''", "(1, 2)", "[]", "{}", "True", "C", "undefined"])

places = st.one_of(
    st.builds("block_state.{}".format, NAMES),
    st.builds("components.{}".format, COMPONENTS),
    st.builds("components.{}.config.x".format, COMPONENTS),
    st.builds("components.config.is_{}".format, NAMES),
    st.builds("getattr(block_state, '{}', None)".format, NAMES),
    st.builds("getattr(components, {})".format, LOCALS),
    LOCALS,
)
expressions = st.recursive(
    st.one_of(places, CONSTANTS),
    lambda inner: st.one_of(
        st.builds("({} or {})".format, inner, inner),
        st.builds("({} if {} is None else {})".format, inner, inner, inner),
        st.builds("({0} + {1} * ({2} - {0}))".format, inner, inner, inner),
        st.builds("({} > {})".format, inner, inner),
        st.builds("[{} for value in {}]".format, inner, inner),
        st.builds("torch.randn({}, generator={}, device={})".format, inner, inner, inner),
        st.builds("components.{}.encode({})".format, COMPONENTS, inner),
        st.builds("helper({}, components, block_state)".format, inner),
        st.builds("self.method({})".format, inner),
        st.builds("(lambda value=1: {})".format, inner),
        st.builds("f'{{{}}}'".format, LOCALS),
        st.builds("(value := {})".format, inner),
    ),
    max_leaves=6,
)
targets = st.one_of(
    st.builds("block_state.{}".format, NAMES),
    st.builds("block_state['{}']".format, NAMES),
    st.builds("components.{}.x".format, COMPONENTS),
    st.builds("components.{}".format, COMPONENTS),
    st.builds("state.values['{}']".format, NAMES),
    LOCALS,
)
simple = st.one_of(
    st.builds("{} = {}".format, targets, expressions),
    st.builds("{}, {} = {}".format, targets, targets, expressions),
    st.builds("{} += {}".format, targets, expressions),
    st.builds("setattr(block_state, {!r}, {})".format, NAMES, expressions),
    st.builds("state.set('{}', {})".format, NAMES, expressions),
    st.builds("del {}".format, st.builds("block_state.{}".format, NAMES)),
    st.just("block_state = self.get_block_state(state)"),
    st.just("self.set_block_state(state, block_state)"),
    st.just("components, block_state = self.loop_step(components, block_state, i=1, t=2)"),
    st.just("return components, state"),
    st.just("return state"),
    st.just("raise ValueError"),
    st.just("from ...pipelines.flux import FluxPipeline"),
    st.just("pass"),
    st.builds("{}".format, expressions),
)


def indent(lines):
    return ["    " + line for line in lines]


def compound(inner):
    body = st.lists(inner, min_size=1, max_size=3).map(lambda parts: [line for part in parts for line in part])
    return st.one_of(
        st.builds(lambda test, lines: [f"if {test}:", *indent(lines)], expressions, body),
        st.builds(lambda t, a, b: [f"if {t}:", *indent(a), "else:", *indent(b)], expressions, body, body),
        st.builds(lambda t, e, lines: [f"for {t} in {e}:", *indent(lines)], targets, expressions, body),
        st.builds(lambda e, lines: [f"while {e}:", *indent(lines), "    break"], expressions, body),
        st.builds(lambda a, b: ["try:", *indent(a), "except AttributeError:", *indent(b)], body, body),
        st.builds(lambda a, b: ["try:", *indent(a), "finally:", *indent(b)], body, body),
        st.builds(lambda e, t, lines: [f"with {e} as {t}:", *indent(lines)], expressions, targets, body),
        st.builds(lambda lines: ["def inner(value):", *indent(lines)], body),
        st.builds(
            lambda e, lines: [f"match {e}:", "    case {'a': value}:", *indent(indent(lines))], expressions, body
        ),
    )


statements = st.recursive(simple.map(lambda line: [line]), compound, max_leaves=8)
bodies = st.lists(statements, min_size=1, max_size=6).map(lambda parts: [line for part in parts for line in part])
params = st.one_of(
    st.builds("InputParam('{}')".format, NAMES),
    st.builds("InputParam.template('{}', required=True)".format, NAMES),
    st.builds("InputParam(name={}, default={})".format, expressions, CONSTANTS),
    st.builds("InputParam(**{})".format, expressions),
    st.builds("OutputParam.template('{}')".format, NAMES),
    st.builds("*[InputParam(value) for value in {}]".format, expressions),
    st.builds("ComponentSpec('{}', Thing)".format, COMPONENTS),
    st.builds("*super().inputs".format),
    expressions,
)
PROPERTIES = ["inputs", "intermediate_outputs", "expected_components", "loop_inputs", "outputs", "expected_configs"]
properties = st.builds(
    lambda name, before, items: [
        "@property",
        f"def {name}(self):",
        *indent([*before, f"return [{', '.join(items)}]"]),
    ],
    st.sampled_from(PROPERTIES),
    st.lists(simple, max_size=1),
    st.lists(params, max_size=3),
)
calls = st.builds(
    lambda signature, lines: [f"def __call__({signature}):", *indent(lines)],
    st.sampled_from(
        ["self, components, state", "self, components, block_state, i, t", "self", "*args", "self, c, s, *, k=1"]
    ),
    bodies,
)
initialisers = st.builds(
    lambda lines: ["def __init__(self, fields=None, *args):", *indent([*lines, "self._fields = fields"])], bodies
)
BASES = [
    "ModularPipelineBlocks", "SequentialPipelineBlocks", "AutoPipelineBlocks", "ConditionalPipelineBlocks",
    "LoopSequentialPipelineBlocks", "ModularPipeline", "Block0", "Block1", "Block2", "Block3", "Unknown", "object",
]  # fmt: skip
blocks = st.sampled_from(
    ["Block0", "Block1", "Block2()", "Block3", "Unknown", "*TABLE.values()", "Block1(fields=[1])"]
)
lists = st.builds(
    lambda items, names: [
        f"block_classes = [{', '.join(items)}]",
        f"block_names = {names}",
        "block_trigger_inputs = ['image', None]",
    ],
    st.lists(blocks, max_size=3),
    st.sampled_from(["['a', 'b']", "TABLE.keys()", "[]", "undefined"]),
)
members = st.one_of(
    properties, calls, initialisers, lists, st.just(['model_name = "toy"']), bodies.map(lambda _: ["x = 1"])
)
classes = st.builds(
    lambda base, parts: (base, [line for part in parts for line in part]),
    st.sampled_from(BASES),
    st.lists(members, min_size=1, max_size=5),
)
tables = st.sampled_from(
    [
        "TABLE = InsertableDict([('a', Block0), ('b', Block1())])",
        "TABLE = {'a': Block0}; TABLE.insert('b', Block2, 0); TABLE.update(TABLE)",
        "TABLE = undefined()",
        "for TABLE in TABLE: TABLE = TABLE + TABLE",
    ]
)
HEADER = """\
import torch
from ..modular_pipeline import *
from ..modular_pipeline import (
    AutoPipelineBlocks, ConditionalPipelineBlocks, LoopSequentialPipelineBlocks, ModularPipeline,
    ModularPipelineBlocks, SequentialPipelineBlocks,
)
from ..modular_pipeline_utils import ComponentSpec, InputParam, InsertableDict, OutputParam
from .other import Unknown
C = 4 * 2
"""
helpers = bodies.map(lambda lines: ["def helper(value, components, block_state):", *indent(lines)])


@st.composite
def sources(draw):
    """A module of up to four block classes, with helpers and an assembly beside them."""
    parts = [HEADER, draw(tables), *draw(helpers)]
    for number, (base, lines) in enumerate(draw(st.lists(classes, min_size=1, max_size=4))):
        parts += [f"class Block{number}({base}):", *indent(lines)]
    return "\n".join(parts) + "\n"


FILES = [
    "encoders.py",
    "before_denoise.py",
    "denoise.py",
    "decoders.py",
    "modular_blocks_toy.py",
    "modular_pipeline.py",
]
paths = st.sampled_from([f"diffusers/modular_pipelines/toy/{name}" for name in FILES] + ["tests/toy/test_toy.py"])
