"""How names are followed through a package: each way to import, to inherit and to assemble."""

from pathlib import Path

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse, analyse_source
from diffusers_offload_plus.lint.evaluation.values import Constant
from diffusers_offload_plus.lint.project.project import Project
from diffusers_offload_plus.lint.reading.location import installed_diffusers, module_name

ROOT = Path("/nowhere/src/diffusers/modular_pipelines/toy")
HEADER = """
from ..modular_pipeline import (
    AutoPipelineBlocks, LoopSequentialPipelineBlocks, ModularPipelineBlocks, SequentialPipelineBlocks
)
from ..modular_pipeline_utils import ComponentSpec, InputParam, InsertableDict, OutputParam
"""


def project_of(**files) -> Project:
    sources = {ROOT / f"{name}.py": HEADER + text for name, text in files.items()}
    sources[ROOT / "__init__.py"] = ""
    analysis = analyse([ROOT], [], sources=sources)
    assert not analysis.problems
    return analysis.project


def block_of(project, name):
    return next(block for block in project.blocks if block.name == name)


def names_in(block, what="inputs"):
    return [spec.name for spec in block.declared(what).specs]


LEAF = """
class Leaf(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def inputs(self):
        return [InputParam("a", default=1)]

    @property
    def intermediate_outputs(self):
        return [OutputParam("b")]

    def __call__(self, components, state):
        return components, state
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from .leaf import Leaf as Base",
        "from . import leaf\nBase = leaf.Leaf",
        "from ..toy.leaf import Leaf\nBase = Leaf",
        "from ...modular_pipelines.toy.leaf import *\nBase = Leaf",
        "import diffusers.modular_pipelines.toy.leaf\nBase = diffusers.modular_pipelines.toy.leaf.Leaf",
        "import diffusers.modular_pipelines.toy.leaf as leaf\nBase = leaf.Leaf",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .leaf import Leaf as Base",
        "try:\n    from .leaf import Leaf as Base\nexcept ImportError:\n    Base = None",
        "from .passed_on import Again as Base",
    ],
)
def test_base_through_imports(statement):
    project = project_of(
        leaf=LEAF,
        passed_on="from .leaf import Leaf as Again",
        block=statement + "\n\n\nclass Block(Base):\n    pass\n",
    )
    block = block_of(project, "Block")
    assert block.kind == "leaf"
    assert names_in(block) == ["a"]
    assert block.text("model_name") == "toy"


def test_lazy_package_exports():
    project = project_of(
        block="from diffusers import FluxAutoBlocks\n"
        "from diffusers.modular_pipelines import SequentialPipelineBlocks as S\n"
        "class Block(S):\n    block_classes = [FluxAutoBlocks]\n    block_names = ['flux']\n"
    )
    block = block_of(project, "Block")
    assert block.kind == "sequential"
    assert [info.info.name for _, info in block.sub_blocks[0]] == ["FluxAutoBlocks"]
    assert "prompt" in names_in(block)


def test_kinds_across_files_and_aliases():
    project = project_of(
        base="Loop = LoopSequentialPipelineBlocks\nclass Wrapper(Loop):\n    pass\n",
        block="from .base import Wrapper\nclass A(Wrapper):\n    pass\nclass B(AutoPipelineBlocks):\n    pass\n"
        "class C(Unknown):\n    pass\nclass D:\n    pass\n",
    )
    kinds = {info.name: info.kind for source in project.sources for info in project.classes.of(source)}
    assert kinds == {"Wrapper": "loop", "A": "loop", "B": "auto", "C": "", "D": ""}


INPUTS = {
    "super() and more": ("return super().inputs + [InputParam('x')]", ["a", "x"]),
    "unpacked": ("return [*super().inputs, InputParam(name='x')]", ["a", "x"]),
    "appended": ("found = super().inputs\n        found.append(InputParam('x'))\n        return found", ["a", "x"]),
    "in a loop": (
        "found = []\n        for n in NAMES:\n            found += [InputParam(n)]\n        return found",
        ["x", "y"],
    ),
    "comprehension": ("return [InputParam(name) for name in NAMES if name != 'y']", ["x"]),
    "dictionary": ("return [InputParam(**{'name': 'x', 'default': 2})]", ["x"]),
    "template": ("return [InputParam.template('height', name='x'), InputParam.template('latents')]", ["x", "latents"]),
    "text": ("return [InputParam(f'{NAMES[0]}_{1 + 1}')]", ["x_2"]),
    "of self": ("return [InputParam(name) for name in self.fields]", ["p", "q"]),
    "of a helper": ("return self.more() + also('z')", ["m", "z"]),
    "of a branch": ("return [InputParam('x')] if self.fields else []", ["x"]),
    "of either branch": (
        "if unknown():\n            return [InputParam('x')]\n        return [InputParam('y')]",
        ["x", "y"],
    ),
    "nothing": ("return []", []),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name):
    text, expected = INPUTS[name]
    project = project_of(
        leaf=LEAF,
        block=f"""
from .leaf import Leaf
NAMES = ("x", "y")


def also(name):
    return [InputParam(name)]


class Block(Leaf):
    def __init__(self, fields=("p", "q")):
        self.fields = fields
        super().__init__()

    def more(self):
        return [InputParam("m")]

    @property
    def inputs(self):
        {text}
""",
    )
    block = block_of(project, "Block")
    assert names_in(block) == expected
    assert block.inputs.whole


@pytest.mark.parametrize("text", ["return compute()", "return [*compute()]", "return [InputParam(compute())]"])
def test_unknown_stays_unknown(text):
    project = project_of(
        block=f"class Block(ModularPipelineBlocks):\n    @property\n    def inputs(self):\n        {text}\n"
    )
    assert not block_of(project, "Block").inputs.whole


def test_arguments_of_a_block_reach_its_declarations():
    project = project_of(
        block="class Leaf(ModularPipelineBlocks):\n    def __init__(self, names=('a',)):\n"
        "        self._names = names\n    @property\n    def inputs(self):\n"
        "        return [InputParam(name) for name in self._names]\n"
        "class Block(SequentialPipelineBlocks):\n    block_classes = [Leaf(names=['b', 'c']), Leaf]\n"
        "    block_names = ['one', 'two']\n"
    )
    assert names_in(block_of(project, "Leaf")) == ["a"]
    assert names_in(block_of(project, "Block")) == ["b", "c", "a"]
    assert block_of(project, "Leaf").declared("inputs", anywhere=True).names == {"a", "b", "c"}


ASSEMBLIES = {
    "literal": ("", "[Leaf, Leaf()]", "['x', 'y']", ["x", "y"]),
    "dictionary": ("T = InsertableDict([('x', Leaf), ('y', Leaf())])", "T.values()", "T.keys()", ["x", "y"]),
    "copied": (
        "T = InsertableDict([('x', Leaf)])\nU = T.copy()\nU.insert('y', Leaf(), 0)",
        "list(U.values())",
        "list(U.keys())",
        ["y", "x"],
    ),
    "moved": (
        "T = InsertableDict([('x', Leaf), ('y', Leaf)])\nT.insert('x', Leaf, 1)",
        "T.values()",
        "list(T)",
        ["y", "x"],
    ),
    "changed later": ("T = InsertableDict([('x', Leaf)])", "T.values()", "T.keys()", ["x", "late"]),
    "snapshot": ("T = InsertableDict([('x', Leaf)])", "list(T.values())", "list(T.keys())", ["x"]),
    "loop": (
        "T = InsertableDict()\nfor name in ('x', 'y'):\n    T[name] = Leaf",
        "T.values()",
        "T.keys()",
        ["x", "y", "late"],
    ),
}


@pytest.mark.parametrize("name", ASSEMBLIES)
def test_assemblies(name):
    before, classes, names, expected = ASSEMBLIES[name]
    late = "T['late'] = Leaf\n" if "late" in expected or name == "snapshot" else ""
    project = project_of(
        block=f"{LEAF}\n{before}\nclass Block(SequentialPipelineBlocks):\n    block_classes = {classes}\n"
        f"    block_names = {names}\n{late}"
    )
    found, whole = block_of(project, "Block").sub_blocks
    assert whole
    assert [name for name, _ in found] == expected


def test_what_is_produced_is_no_input():
    project = project_of(
        leaf=LEAF,
        block="from .leaf import Leaf\nclass Next(Leaf):\n    @property\n    def inputs(self):\n"
        "        return [InputParam('b'), InputParam('c')]\n"
        "class Block(SequentialPipelineBlocks):\n    block_classes = [Leaf, Next]\n    block_names = ['x', 'y']\n"
        "class Auto(AutoPipelineBlocks):\n    block_classes = [Leaf]\n    block_names = ['x']\n"
        "    block_trigger_inputs = ['a']\n"
        "class Skipped(SequentialPipelineBlocks):\n    block_classes = [Auto, Next]\n    block_names = ['x', 'y']\n",
    )
    assert names_in(block_of(project, "Block")) == ["a", "c"]
    assert names_in(block_of(project, "Skipped")) == ["a", "b", "c"]


def test_templates_come_from_the_diffusers_source_in_use(tmp_path):
    package = tmp_path / "diffusers" / "modular_pipelines"
    (package / "toy").mkdir(parents=True)
    installed = installed_diffusers() / "modular_pipelines"
    (package / "modular_pipeline.py").write_text((installed / "modular_pipeline.py").read_text())
    (package / "modular_pipeline_utils.py").write_text(
        "INPUT_PARAM_TEMPLATES = {'height': {'default': 77, 'description': 'H.'}}\n"
        "class InputParam:\n    description: str = ''\n    name: str = None\n"
    )
    (package / "toy" / "block.py").write_text(
        HEADER + "class Block(ModularPipelineBlocks):\n    @property\n    def inputs(self):\n"
        "        return [InputParam.template('height'), InputParam('Text.', 'x'), InputParam.template('width')]\n"
    )
    project = analyse([package / "toy"], []).project
    assert project.diffusers == tmp_path / "diffusers"
    height, x, width = block_of(project, "Block").inputs.specs
    assert height.constant("default") == 77
    assert x.name == "x"
    assert x.constant("description") == "Text."
    assert not width.known("default")


def test_without_diffusers(monkeypatch):
    monkeypatch.setattr("diffusers_offload_plus.lint.analysis.analyse.installed_diffusers", lambda: None)
    analysis = analyse_source(HEADER + LEAF, "diffusers/modular_pipelines/toy/block.py", [])
    block = analysis.project.blocks[0]
    assert block.kind == "leaf"
    assert names_in(block) == ["a"]


def test_what_lies_outside_of_the_roots_is_read_but_not_linted(tmp_path):
    family = tmp_path / "package"
    family.mkdir()
    (tmp_path / "outside.py").write_text("class Outside:\n    pass\n")
    (family / "__init__.py").write_text("")
    (tmp_path / "__init__.py").write_text("")
    (family / "block.py").write_text("from ..outside import Outside\nclass Block(Outside):\n    pass\n")
    project = analyse([family], []).project
    source = next(source for source in project.sources if source.stem == "block")
    (base,) = project.classes.of(source)[0].bases
    assert (base.name, base.source.linted) == ("Outside", False)
    assert {source.stem for source in project.sources} == {"__init__", "block"}


def test_nothing_is_imported_or_run(tmp_path):
    family = tmp_path / "diffusers" / "modular_pipelines" / "toy"
    family.mkdir(parents=True)
    (family / "block.py").write_text(
        f"open({str(tmp_path / 'run')!r}, 'w')\nimport os\nos.mkdir({str(tmp_path / 'made')!r})\n"
        + HEADER
        + f"class Block(ModularPipelineBlocks):\n    inputs = [open({str(tmp_path / 'run')!r}, 'w')]\n"
    )
    analyse([tmp_path], [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diffusers"]


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("/a/src/diffusers/modular_pipelines/toy/x.py", "diffusers.modular_pipelines.toy.x"),
        ("/a/diffusers/src/diffusers/modular_pipelines/toy/__init__.py", "diffusers.modular_pipelines.toy"),
        ("/a/diffusers/tests/modular_pipelines/toy/test_x.py", ""),
        ("/a/elsewhere/x.py", ""),
    ],
)
def test_module_names(path, module):
    assert module_name(Path(path), {}) == module


def test_calls_are_folded_within_bounds():
    project = project_of(
        block="A = 4 * 8\nB = 'x' * 9\nC = 10 ** 9 ** 9\nD = (-1, 'a' + 'b')\nE = [n for n in range(3)]\n"
    )
    source = next(source for source in project.sources if source.stem == "block")
    names = project.evaluator.module_names(source)
    assert names["A"] == Constant(32)
    assert [item.value for item in names["D"].items] == [-1, "ab"]
    assert [item.value for item in names["E"].items] == [0, 1, 2]
    assert not isinstance(names["C"], Constant)
