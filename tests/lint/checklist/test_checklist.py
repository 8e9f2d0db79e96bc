"""``--checklist``: items as done, missing or left to a person, with the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusers_offload_plus.cli import main
from diffusers_offload_plus.lint.checklist.items import State
from diffusers_offload_plus.lint.checklist.steps import checklist

from ..toy import write

FAMILY = "diffusers/modular_pipelines/toy"
IMPORTS = """\
import torch

from ..modular_pipeline import LoopSequentialPipelineBlocks, ModularPipeline
from ..modular_pipeline import ModularPipelineBlocks, SequentialPipelineBlocks
from ..modular_pipeline_utils import ComponentSpec, InputParam, OutputParam


"""


def leaf(name: str, output: str, component: str = "vae") -> str:
    return (
        IMPORTS
        + f"class {name}(ModularPipelineBlocks):\n    model_name = 'toy'\n\n"
        + "    @property\n    def expected_components(self):\n"
        + f"        return [ComponentSpec('{component}', torch.nn.Module)]\n\n"
        + "    @property\n    def intermediate_outputs(self):\n"
        + f"        return [OutputParam('{output}', description='What it makes.')]\n"
    )


COMPLETE = {
    "__init__.py": "from ...utils import _LazyModule\n_LazyModule\n",
    "modular_pipeline.py": IMPORTS + "class ToyPipeline(ModularPipeline):\n    default_blocks_name = 'ToyBlocks'\n",
    "encoders.py": leaf("ToyTextEncoderStep", "prompt_embeds", "text_encoder"),
    "before_denoise.py": leaf("ToyPrepareLatentsStep", "latents") + leaf("ToySetTimestepsStep", "timesteps"),
    "denoise.py": leaf("ToyLoopDenoiser", "noise_pred", "guider")
    + "class ToyDenoiseStep(LoopSequentialPipelineBlocks):\n    block_classes = [ToyLoopDenoiser]\n",
    "decoders.py": leaf("ToyDecodeStep", "images"),
    "modular_blocks_toy.py": IMPORTS
    + "from .decoders import ToyDecodeStep\n\n\n# auto_docstring\nclass ToyBlocks(SequentialPipelineBlocks):\n"
    + '    """Toy."""\n\n    model_name = "toy"\n    block_classes = [ToyDecodeStep]\n    block_names = ["decode"]\n',
}

BY_HAND = {
    "stages of the original pipeline mapped",
    "scripts that run the reference and the blocks from one seed",
    "image or video encoder block",
    "style and quality checks of diffusers pass",
    "every workflow compared with the reference",
}


def states(root: Path, files: dict[str, str]) -> dict[str, State]:
    write(root, {f"{FAMILY}/{name}": text for name, text in files.items()})
    return {item.title: item.state for item in checklist(root / FAMILY)}


def test_a_complete_family(tmp_path: Path) -> None:
    found = states(tmp_path, COMPLETE)
    exports = found.pop("lazy imports and exports")  # the family is no part of an installed diffusers
    assert exports in (State.DONE, State.MISSING)
    assert {title for title, state in found.items() if state is not State.DONE} == BY_HAND
    assert {found[title] for title in BY_HAND} == {State.UNDECIDABLE}


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("decoders.py", None, "files of the family"),
        ("decoders.py", "", "decoder block"),
        ("encoders.py", "", "text encoder block"),
        ("before_denoise.py", leaf("ToySetTimestepsStep", "timesteps"), "block that prepares latents and noise"),
        ("before_denoise.py", leaf("ToyPrepareLatentsStep", "latents"), "block that sets the timesteps"),
        ("denoise.py", "", "denoising loop"),
        ("modular_pipeline.py", "", "pipeline class with default_blocks_name"),
        (
            "modular_pipeline.py",
            IMPORTS + "class ToyPipeline(ModularPipeline):\n    pass\n",
            "pipeline class with default_blocks_name",
        ),
        ("modular_blocks_toy.py", "", "blocks assembled"),
        ("__init__.py", "", "lazy imports and exports"),
        (
            "modular_blocks_toy.py",
            COMPLETE["modular_blocks_toy.py"].replace("# auto_docstring\n", ""),
            "# auto_docstring above assembled blocks",
        ),
        (
            "modular_blocks_toy.py",
            COMPLETE["modular_blocks_toy.py"].replace("Toy.", "Toy.\n\n    TODO: Add description.\n    "),
            "docstrings generated, with every parameter described",
        ),
        (
            "denoise.py",
            COMPLETE["denoise.py"].replace(
                "    @property\n    def intermediate",
                "    def __call__(self, components, block_state, i, t):\n        do_cfg = True\n"
                "        return components, block_state\n\n    @property\n    def intermediate",
            ),
            "guidance left to a guider",
        ),
    ],
)
def test_what_is_missing_is_seen(name: str, text: str | None, title: str, tmp_path: Path) -> None:
    files = {**COMPLETE, name: text}
    found = states(tmp_path, {key: value for key, value in files.items() if value is not None})
    assert found[title] is State.MISSING


def test_without_a_guider_a_person_decides(tmp_path: Path) -> None:
    files = {**COMPLETE, "denoise.py": COMPLETE["denoise.py"].replace("'guider'", "'transformer'")}
    assert states(tmp_path, files)["guidance left to a guider"] is State.UNDECIDABLE


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    states(tmp_path, {**COMPLETE, "decoders.py": ""})
    assert main(["lint", "--checklist", FAMILY]) == 1
    shown = capsys.readouterr().out
    assert "done     text encoder block\n" in shown
    assert f"         {FAMILY}/encoders.py:8 ToyTextEncoderStep\n" in shown
    assert (
        f"missing  decoder block\n         a block that takes latents and returns images or videos\n         {FAMILY}/"
        in shown
    )
    assert "by hand  stages of the original pipeline mapped\n" in shown
    assert shown.splitlines()[-1].startswith("17 items: ")
    assert main(["lint", "--checklist", FAMILY, "--format", "json"]) == 1
    items = json.loads(capsys.readouterr().out)
    assert len(items) == 17
    assert set(items[0]) == {"title", "state", "places", "note"}


def test_a_directory_that_is_no_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--checklist", str(tmp_path)]) == 2
    assert "there are no Python files in it" in capsys.readouterr().err
