"""Spellings of a rule's subject as tests: ``#!`` marks the lines that must be reported."""

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse_source
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.rules.base.examples import blocks_example
from diffusers_offload_plus.lint.rules.registry import catalogue

__all__ = ["ENCODER", "LEAF", "SCALE", "Variants", "check"]

ENCODER = dict(components='ComponentSpec("text_encoder", torch.nn.Module)', file="encoders.py")
LEAF = (
    blocks_example("pass")
    .replace(
        "ModularPipelineBlocks, PipelineState",
        "AutoPipelineBlocks, ConditionalPipelineBlocks, ModularPipelineBlocks, PipelineState, "
        "SequentialPipelineBlocks",
    )
    .replace("InputParam, OutputParam", "InputParam, InsertableDict, OutputParam")
)
SCALE = 'InputParam("guidance_scale", description="Scale."), InputParam("mask", description="Mask.")'


class Variants(list):
    """Parameters of a test of :func:`check`, added one by one."""

    def variant(self, code, name, source, file="denoise.py", folder="diffusers/modular_pipelines/toy"):
        self.append(pytest.param(code, source, f"{folder}/{file}", id=f"{code}-{name}"))

    def body(self, code, name, text, file="denoise.py", before="", **declared):
        self.variant(code, name, before + blocks_example(text, **declared), file)


def check(code, source, path):
    expected = [number for number, line in enumerate(source.split("\n"), start=1) if "#!" in line]
    analysis = analyse_source(source, path, [catalogue().by_code[code]])
    assert not analysis.problems
    assert sorted({finding.line for finding in analysis.findings if finding.level is not Level.OFF}) == expected, (
        source
    )
