"""What the project model reads from source, against what the installed diffusers says when its blocks are created."""

import importlib

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse
from diffusers_offload_plus.lint.reading.location import installed_diffusers

DECLARATIONS = ("inputs", "intermediate_outputs", "expected_components", "expected_configs")


def families():
    root = installed_diffusers()
    folders = sorted(path.parent.name for path in (root / "modular_pipelines").glob("*/__init__.py"))
    assert len(folders) > 20
    return folders


def is_abstract_loop(block, instance):
    return block.kind == "loop" and not instance.sub_blocks


@pytest.mark.parametrize("family", families())
def test_declarations_are_those_at_run_time(family):
    project = analyse([installed_diffusers() / "modular_pipelines" / family], []).project
    assert project.blocks
    for block in project.blocks:
        instance = getattr(importlib.import_module(block.source.module), block.name)()
        if is_abstract_loop(block, instance):
            continue
        for what in DECLARATIONS:
            read = block.declared(what)
            assert read.whole, (block, what)
            names = {spec.name or f"*{spec.constant('kwargs_type')}" for spec in read.specs}
            assert names == {param.name or f"*{param.kwargs_type}" for param in getattr(instance, what)}, (block, what)
        assert block.text("model_name") == instance.model_name
        assert [name for name, _ in block.sub_blocks[0]] == list(instance.sub_blocks), block


@pytest.mark.parametrize("family", ["flux", "wan", "qwenimage", "ltx2"])
def test_defaults_are_those_at_run_time(family):
    project = analyse([installed_diffusers() / "modular_pipelines" / family], []).project
    for block in project.leaves:
        instance = getattr(importlib.import_module(block.source.module), block.name)()
        params = {param.name: param for param in instance.inputs}
        for spec in block.inputs.specs:
            if spec.known("default"):
                assert spec.constant("default") == params[spec.name].default, (block, spec.name)
            if spec.known("required"):
                assert bool(spec.constant("required")) == params[spec.name].required, (block, spec.name)
