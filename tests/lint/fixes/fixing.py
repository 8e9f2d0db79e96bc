"""A block to be fixed, and fixing it."""

from __future__ import annotations

import ast
import difflib
import textwrap
from pathlib import Path

from diffusers_offload_plus.lint.core.finding import Finding
from diffusers_offload_plus.lint.fixes.apply import Fixed, fix_files
from diffusers_offload_plus.lint.rules.registry import catalogue
from diffusers_offload_plus.lint.running.run import Request, examine
from diffusers_offload_plus.lint.settings.layers import Layer, Settings

__all__ = ["FAMILY", "INPUTS", "NOISE", "READ", "STRENGTH", "block", "changed", "findings_in", "fix", "request"]

STRENGTH = 'InputParam("strength", type_hint=float{}, description="How much."),'
NOISE = "block_state.noise = components.vae(block_state.generator)"
READ = "block_state.noise = components.vae(block_state.strength, block_state.generator)"
INPUTS = 'InputParam.template("generator"),\n'

FAMILY = "diffusers/modular_pipelines/toy"

BLOCK = """\
import torch

from ..modular_pipeline import ModularPipelineBlocks, PipelineState
from ..modular_pipeline_utils import ComponentSpec, InputParam, OutputParam


class ToyStep(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def description(self) -> str:
        return "Does a step."

    @property
    def expected_components(self):
        return [ComponentSpec("vae", torch.nn.Module), ComponentSpec("scheduler", torch.nn.Module)]

    @property
    def inputs(self):
        return [
{inputs}
        ]

    @property
    def intermediate_outputs(self):
        return [OutputParam("noise", type_hint=torch.Tensor, description="Noise.")]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState):
        block_state = self.get_block_state(state)
{body}
        self.set_block_state(state, block_state)
        return components, state
"""


def block(body: str, inputs: str = 'InputParam.template("generator"),') -> str:
    return BLOCK.format(body=textwrap.indent(body, " " * 8), inputs=textwrap.indent(inputs, " " * 12))


def request(root: Path, *select: str, **more: object) -> Request:
    layer = Layer(where="test", root=root, select=select or None)
    return Request(paths=[root], settings=Settings(catalogue(), [layer]), **more)  # type: ignore[arg-type]


def fix(root: Path, text: str, *select: str, name: str = "before_denoise.py") -> tuple[str, Fixed]:
    """What ``text`` becomes, and the outcome; a second round has to find nothing to do."""
    path = root / FAMILY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    fixed = fix_files(request(root, *select))
    for file in fixed.files:
        file.write()
    after = path.read_text()
    ast.parse(after)
    again = fix_files(request(root, *select))
    assert not again.files, "a second round changed more"
    return after, fixed


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines that went and lines that came, without their indentation."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    gone = [line[2:].strip() for line in lines if line.startswith("- ")]
    came = [line[2:].strip() for line in lines if line.startswith("+ ")]
    return gone, came


def findings_in(root: Path, text: str, name: str = "before_denoise.py") -> list[Finding]:
    """Findings of all rules in a file that holds ``text`` alone."""
    path = root / FAMILY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return examine(request(root)).findings
