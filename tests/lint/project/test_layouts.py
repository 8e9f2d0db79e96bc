"""Blocks as they lie in the wild, a small tree for each layout: what is wrong is found, what is fine is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.rules.registry import catalogue
from diffusers_offload_plus.lint.running.run import Request, run_lint
from diffusers_offload_plus.lint.settings.layers import Settings

IMPORTS = """\
import torch
from diffusers.modular_pipelines import (
    ComponentSpec, ConfigSpec, InputParam, ModularPipelineBlocks, OutputParam, SequentialPipelineBlocks
)
"""
RELATIVE = """\
import torch

from ..modular_pipeline import ModularPipelineBlocks, SequentialPipelineBlocks
from ..modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam
"""
DESCRIPTION = """
    @property
    def description(self):
        return "Does a step."
"""
GOOD = """

class {name}({base}):
    model_name = "toy"
{description}
    @property
    def expected_components(self):
        return [ComponentSpec("upscaler", torch.nn.Module)]

    @property
    def inputs(self):
        return [InputParam("image", required=True, description="Image.")]

    @property
    def intermediate_outputs(self):
        return [OutputParam("{output}", description="Result.")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.{output} = components.upscaler(block_state.image)
        self.set_block_state(state, block_state)
        return components, state
"""
BAD = GOOD.replace("block_state.{output} = ", "block_state.scratch = 1  #! MOD013\n        block_state.{output} = ")


def good(name, base="ModularPipelineBlocks", output="large"):
    return GOOD.format(name=name, base=base, output=output, description=DESCRIPTION)


def bad(name, base="ModularPipelineBlocks", output="large"):
    return BAD.format(name=name, base=base, output=output, description=DESCRIPTION)


SEQUENCE = (
    """

class Both(SequentialPipelineBlocks):
    block_classes = [First, Second]
    block_names = ["first", "second"]
"""
    + DESCRIPTION
)
TWICE = SEQUENCE.replace('["first", "second"]', '["same", "same"]').replace("Blocks):", "Blocks):  #! MOD036")

LAYOUTS: dict[str, dict[str, str]] = {
    "package in diffusers": {
        "diffusers/modular_pipelines/toy/__init__.py": "",
        "diffusers/modular_pipelines/toy/encoders.py": RELATIVE + good("First", output="middle"),
        "diffusers/modular_pipelines/toy/decoders.py": RELATIVE + bad("Second"),
        "diffusers/modular_pipelines/toy/denoise.py": RELATIVE
        + "from ..flux.encoders import FluxTextEncoderStep  #! MOD002\nfrom ...pipelines.flux import x  #! MOD001\n"
        + good("Third"),
    },
    "family copied out of diffusers": {
        "toy/__init__.py": "",
        "toy/steps.py": RELATIVE + bad("First", output="middle") + good("Second"),
        "toy/blocks.py": RELATIVE + "from .steps import First, Second\n" + TWICE,
    },
    "repository of the Hub": {
        "block.py": IMPORTS + "from .first import First\nfrom .second import Second\n" + TWICE,
        "first.py": IMPORTS + good("First", output="middle"),
        "second.py": IMPORTS + "from .first import First\n" + bad("Second", base="First"),
        "modular_config.json": "{}",
    },
    "node pack of ComfyUI": {
        "custom_nodes/ToyPack/__init__.py": "from .nodes import NODE_CLASS_MAPPINGS\n",
        "custom_nodes/ToyPack/nodes.py": "try:\n    from .blocks.base import Base\nexcept ImportError:\n"
        "    from blocks.base import Base\n"
        + IMPORTS
        + bad("Upscale", base="Base")
        + "\n\nclass UpscaleNode:\n    FUNCTION = 'run'\n\n    def __call__(self, image):\n        return image\n\n\n"
        "NODE_CLASS_MAPPINGS = {'Upscale': UpscaleNode}\n",
        "custom_nodes/ToyPack/blocks/base.py": IMPORTS + good("Base"),
        "custom_nodes/OtherPack/__init__.py": "",
        "custom_nodes/OtherPack/blocks/base.py": "class Base:\n    pass\n",
        "custom_nodes/OtherPack/nodes.py": "from .blocks.base import Base\n\n\nclass Upscale(Base):\n    pass\n",
    },
    "application with base classes of its own": {
        "pyproject.toml": "",
        "src/app/__init__.py": "",
        "src/app/core/__init__.py": "from .step import AppStep\n",
        "src/app/core/step.py": IMPORTS
        + good("AppStep")
        + "\n    def own(self, state):\n        return self.get_block_state(state)\n",
        "src/app/steps/upscale.py": "from app.core import AppStep\n"
        + IMPORTS
        + bad("Upscale", base="AppStep").replace("self.get_block_state(state)", "self.own(state)"),
        "scripts/run.py": "from app.steps.upscale import Upscale\n\nUpscale().init_pipeline()\n",
        "src/app/steps/elsewhere.py": "from vendor.blocks import VendorStep\n"
        + IMPORTS
        + good("Vendor", base="VendorStep").replace("(VendorStep):", "(VendorStep):  #! MOD101"),
    },
}


def expected(files: dict[str, str]) -> set[tuple[str, int, str]]:
    return {
        (name, number, line.partition("#! ")[2])
        for name, text in files.items()
        for number, line in enumerate(text.split("\n"), 1)
        if "#! " in line
    }


def found(root: Path, *paths: Path) -> set[tuple[str, int, str]]:
    report = run_lint(Request(paths=paths or [root], settings=Settings(catalogue())))
    return {
        (Path(finding.path).relative_to(root).as_posix(), finding.line, finding.code)
        for finding in report.findings
        if finding.level in (Level.ERROR, Level.WARNING)
    }


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_layout(files: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, files)
    assert found(tmp_path) == expected(files)


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_each_file_by_itself(files: dict[str, str], tmp_path: Path) -> None:
    """What is found in a file does not depend on which other files are named."""
    write(tmp_path, files)
    for name in files:
        if name.endswith(".py"):
            assert found(tmp_path, tmp_path / name) == {row for row in expected(files) if row[0] == name}, name


def test_notebook(tmp_path: Path) -> None:
    cells = [IMPORTS, "!pip install x", bad("First"), "pipe = First().init_pipeline()\npipe?"]
    made = [{"cell_type": "code", "metadata": {}, "source": cell, "outputs": []} for cell in cells]
    path = tmp_path / "toy.ipynb"
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    report = run_lint(Request(paths=[path], settings=Settings(catalogue())))
    lines = cells[2].split("\n")
    marked = next(number for number, line in enumerate(lines, 1) if "#!" in line)
    shown = [(finding.cell, finding.lines_shown[0], finding.code) for finding in report.findings]
    assert shown == [(3, marked, "MOD013")]
