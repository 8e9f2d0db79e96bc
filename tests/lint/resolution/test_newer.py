"""Frameworks newer than the installed one: what they have is said, and their loops are understood."""

from pathlib import Path

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.reading.location import installed_diffusers
from diffusers_offload_plus.lint.rules.registry import all_rules

IMPORTS = """\
from diffusers.modular_pipelines import (
    InputParam, IterativePipelineBlocks, ModularLoopPipelineBlocks, ModularPipelineBlocks, OutputParam
)
"""
STEP = """

class {name}({base}):
    model_name = "toy"

    @property
    def description(self):
        return "D."

    @property
    def inputs(self):
        return [InputParam("latents", required=True, description="L.")]

    @property
    def intermediate_outputs(self):
        return [OutputParam("latents", description="L.")]

    def __call__(self, components, state, {taken}):
        block_state = self.get_block_state(state)
        block_state.latents = block_state.latents + {used}
        self.set_block_state(state, block_state)
        return components, state
"""
LOOP = """

class {name}(IterativePipelineBlocks):
    model_name = "toy"
    block_classes = [{steps}]
    block_names = {names!r}

    @property
    def description(self):
        return "D."

    @property
    def loop_variables(self):
        return {variables!r}

    @property
    def loop_inputs(self):
        return [InputParam("rounds", required=True, description="R.")]

    def __call__(self, components, state{more}):
        block_state = self.get_block_state(state)
        for {variable} in range(block_state.{count}):
            components, state = self.loop_step(components, state, {passed})
        return components, state
"""
# A framework that has the classes, as far as the linter reads it.
FRAMEWORK = '''

class ModularLoopPipelineBlocks(ModularPipelineBlocks):
    """A step."""


class IterativePipelineBlocks(SequentialPipelineBlocks):
    @property
    def loop_variables(self):
        return []

    @property
    def loop_inputs(self):
        return []

    def loop_step(self, components, state, **kwargs):
        return components, state
'''


def step(name="Step", base="ModularLoopPipelineBlocks", taken="i", used="i"):
    return STEP.format(name=name, base=base, taken=taken, used=used)


def loop(name="Loop", steps=("Step",), **changed):
    given = {"variables": ["i"], "variable": "i", "more": "", "count": "rounds", "passed": "i=i"} | changed
    names = [one.lower() for one in steps]
    return LOOP.format(name=name, steps=", ".join(steps), names=names, **given)


@pytest.fixture(params=["installed", "newer"])
def diffusers(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The installed framework, which lacks the classes, and one that has them."""
    installed = installed_diffusers()
    if request.param == "installed":
        return installed
    folder = tmp_path / "newer" / "diffusers" / "modular_pipelines"
    folder.mkdir(parents=True)
    for name in ("modular_pipeline.py", "modular_pipeline_utils.py"):
        (folder / name).write_text((installed / "modular_pipelines" / name).read_text())
    text = (installed / "modular_pipelines" / "modular_pipeline.py").read_text()
    (folder / "modular_pipeline.py").write_text(text + FRAMEWORK)
    names = "IterativePipelineBlocks, ModularLoopPipelineBlocks, ModularPipelineBlocks, SequentialPipelineBlocks"
    (folder / "__init__.py").write_text(
        f"from .modular_pipeline import {names}\n"
        "from .modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam\n"
    )
    return folder.parent


def found(text: str, diffusers: Path) -> set[str]:
    path = Path("project/blocks.py")
    findings = analyse([path], all_rules(), sources={path: IMPORTS + text}, diffusers=diffusers).findings
    shown = (one for one in findings if one.level is not Level.OFF and one.code != "MOD101")
    return {f"{one.code}: {one.message}" for one in shown}


def test_a_loop_and_its_steps_are_fine(diffusers: Path) -> None:
    assert (
        found(step() + step("Other", taken="**kwargs", used="1") + loop(steps=("Step", "Other")), diffusers) == set()
    )


def test_loops_can_be_nested(diffusers: Path) -> None:
    inner = loop("Inner", more=", k")
    outer = loop("Outer", ("Inner",), variables=["k"], variable="k", passed="k=k")
    assert found(step() + inner + outer, diffusers) == set()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (step(taken="t", used="t") + loop(), "MOD018: Step requires t; its loop passes i"),
        (step(taken="k, **kwargs", used="k") + loop(), "MOD018: Step requires k; its loop passes i"),
        (step(taken="k=1, **more", used="k") + loop(), "MOD018: Step names k, which the loop does not have"),
        (step(taken="*, i, k=1", used="k") + loop(), "MOD018: Step names k, which the loop does not have"),
        (step() + loop(passed="t=i"), "MOD018: Loop passes t; its loop_variables are i"),
        (step() + loop() + loop("Outer", ("Loop",), variables=["k"], passed="k=i"), "MOD018: Loop does not take k"),
        (step(base="ModularPipelineBlocks") + loop(), "(Step) is no ModularLoopPipelineBlocks"),
        (step() + loop(count="others"), "MOD031: Loop reads `block_state.others`"),
        (step().replace("state.latents =", "state.more ="), "MOD013: Step writes `block_state.more`"),
        (
            step()
            + loop().replace(
                "        return components, state\n", "        block_state.x = 1\n        return components, state\n"
            ),
            "MOD013: Loop writes `block_state.x`",
        ),
        (step() + loop(passed="i=components.vae(i)"), "MOD050: Loop runs `vae` in its loop"),
        (step() + loop(passed="i=state.get('q')"), "MOD050: Loop reads the pipeline state in its loop"),
    ],
)
def test_what_is_wrong_with_a_loop(text: str, said: str, diffusers: Path) -> None:
    assert any(said in one for one in found(text, diffusers)), found(text, diffusers)


def messages(text: str) -> list[str]:
    path = Path("project/blocks.py")
    findings = analyse([path], all_rules(), sources={path: text}).findings
    return [one.message for one in findings if one.code == "MOD101"]


def test_what_the_framework_lacks_is_said() -> None:
    (message,) = messages(IMPORTS + step() + loop())
    assert "has no `IterativePipelineBlocks`, `ModularLoopPipelineBlocks`" in message
    assert "its blocks are checked as those of another version" in message
    (message,) = messages("from diffusers.modular_pipelines import StreamEvent\n")
    assert "has no `StreamEvent`: what uses it is not checked" in message
    (message,) = messages("from diffusers.modular_pipelines.modular_pipeline import StreamEvent\n")
    assert "has no `StreamEvent`" in message


def test_what_the_framework_has_is_not_said() -> None:
    assert messages("from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks\n") == []
    assert messages("from diffusers.modular_pipelines import *\nfrom diffusers import FluxPipeline\n") == []
    assert messages("from diffusers.modular_pipelines.flux import encoders, FluxAutoBlocks\n") == []
    assert messages("from diffusers.modular_pipelines import flux\nimport diffusers.modular_pipelines.wan\n") == []


def test_a_base_that_nobody_knows_is_not_checked_and_said() -> None:
    text = IMPORTS.replace("IterativePipelineBlocks", "TreePipelineBlocks") + step(base="TreePipelineBlocks")
    assert any("block base `TreePipelineBlocks` not found: Step not checked" in one for one in messages(text))
