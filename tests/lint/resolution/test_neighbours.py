"""How imports are followed outside of diffusers: repositories of the Hub, scripts, families that were copied."""

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse
from diffusers_offload_plus.lint.rules.registry import catalogue

BLOCK = """
class {name}({base}):
    @property
    def inputs(self):
        return [InputParam("x", description="X.")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.y = block_state.x
        self.set_block_state(state, block_state)
        return components, state
"""
FRAMEWORK = "from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks\n"


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def base_file(name="Base"):
    return FRAMEWORK + BLOCK.format(name=name, base="ModularPipelineBlocks")


def heir(statement, base="Base"):
    return f"from diffusers.modular_pipelines import InputParam\n{statement}\n" + BLOCK.format(name="Heir", base=base)


def flagged(*paths):
    """The files in which the block that writes an undeclared name is seen, and those that say what is not seen."""
    analysis = analyse(paths, [catalogue().by_code["MOD013"], catalogue().by_code["MOD101"]])
    assert not analysis.problems
    return sorted({(finding.path.rpartition("/")[2], finding.code) for finding in analysis.findings})


LAYOUTS = {
    "sibling of a folder without __init__": ({"base.py": base_file()}, "heir.py", "from .base import Base"),
    "folder beside it": ({"parts/base.py": base_file()}, "heir.py", "from .parts.base import Base"),
    "folder above it": ({"base.py": base_file()}, "parts/heir.py", "from ..base import Base"),
    "sys.path": ({"base.py": base_file()}, "heir.py", "from base import Base"),
    "root of a repository": (
        {"pyproject.toml": "", "lib/base.py": base_file()},
        "tools/run/heir.py",
        "from lib.base import Base",
    ),
    "src of a repository": (
        {"pyproject.toml": "", "src/pack/__init__.py": "", "src/pack/base.py": base_file()},
        "examples/heir.py",
        "from pack.base import Base",
    ),
    "module": ({"base.py": base_file()}, "heir.py", "from . import base\nBase = base.Base"),
    "plain import": ({"lib/base.py": base_file()}, "heir.py", "import lib.base\nBase = lib.base.Base"),
    "star": ({"base.py": base_file()}, "heir.py", "from .base import *"),
    "either way": (
        {"base.py": base_file()},
        "heir.py",
        "try:\n    from .base import Base\nexcept ImportError:\n    from base_of_another_name import Base",
    ),
    "either way, the other one": (
        {"base.py": base_file()},
        "heir.py",
        "try:\n    from .elsewhere import Base\nexcept ImportError:\n    from base import Base",
    ),
    "or nothing": (
        {"base.py": base_file()},
        "heir.py",
        "try:\n    from base import Base\nexcept ImportError:\n    class Base:\n        pass",
    ),
    "added to sys.path": (
        {"base.py": base_file()},
        "tools/heir.py",
        "import sys\nsys.path.insert(0, '..')\nfrom base import Base",
    ),
    "a folder added to sys.path": (
        {"lib/parts/base.py": base_file()},
        "tools/heir.py",
        "import os\nimport sys\nsys.path.append(os.path.join(os.path.dirname(__file__), '..', 'lib'))\n"
        "from parts.base import Base",
    ),
    "imported by a call": (
        {"base.py": base_file()},
        "heir.py",
        "import importlib\nbase = importlib.import_module('base')\nBase = base.Base",
    ),
    "chosen": ({"base.py": base_file()}, "heir.py", "import base\nBase = base.Base if base else object"),
    "passed on by __init__": (
        {"parts/__init__.py": "from .base import Base", "parts/base.py": base_file()},
        "heir.py",
        "from .parts import Base",
    ),
}


@pytest.mark.parametrize(("files", "place", "statement"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_base_is_found(tmp_path, files, place, statement):
    write(tmp_path, files | {place: heir(statement)})
    assert flagged(tmp_path / place) == [("heir.py", "MOD013")]
    everywhere = [("base.py", "MOD013"), ("heir.py", "MOD013")]
    assert flagged(tmp_path) == everywhere


@pytest.mark.parametrize(
    "statement",
    [
        "from ..modular_pipeline import ModularPipelineBlocks",
        "from ...modular_pipelines.modular_pipeline import ModularPipelineBlocks",
        "from .compat import ModularPipelineBlocks",
        "from diffusers.pipelines.modular_pipeline import ModularPipelineBlocks",
        "try:\n    from diffusers import ModularPipelineBlocks\nexcept ImportError:\n    ModularPipelineBlocks = None",
        "if True:\n    from diffusers import ModularPipelineBlocks\nelse:\n    ModularPipelineBlocks = object",
    ],
)
def test_the_framework_is_found_where_a_name_can_only_be_its(tmp_path, statement):
    write(tmp_path, {"family/heir.py": heir(statement, "ModularPipelineBlocks")})
    assert flagged(tmp_path) == [("heir.py", "MOD013")]


def test_a_neighbour_goes_before_the_framework(tmp_path):
    own = "class ModularPipelineBlocks:\n    pass\n"
    write(
        tmp_path,
        {
            "modular_pipeline.py": own,
            "family/heir.py": heir("from ..modular_pipeline import ModularPipelineBlocks", "ModularPipelineBlocks"),
        },
    )
    assert flagged(tmp_path) == []


def test_a_copied_family_knows_what_its_dots_mean(tmp_path):
    text = "from ...pipelines.flux import FluxPipeline\n" + heir(
        "from ..modular_pipeline import ModularPipelineBlocks", "ModularPipelineBlocks"
    )
    write(tmp_path, {"family/__init__.py": "", "family/heir.py": text})
    (finding,) = analyse([tmp_path], [catalogue().by_code["MOD001"]]).findings
    assert finding.line == 1


def test_what_lies_beside_a_copied_family_is_no_family(tmp_path):
    text = "from ..flux.encoders import FluxTextEncoderStep\nfrom ..tools import plan\nfrom .more import x\n" + heir(
        "from ..modular_pipeline import ModularPipelineBlocks", "ModularPipelineBlocks"
    )
    write(tmp_path, {"family/heir.py": text, "family/more.py": "x = 1\n", "tools.py": "def plan():\n    pass\n"})
    assert analyse([tmp_path], [catalogue().by_code["MOD002"]]).findings == []
    (tmp_path / "tools.py").unlink()
    assert analyse([tmp_path], [catalogue().by_code["MOD002"]]).findings == []


@pytest.mark.parametrize(
    ("statement", "base", "said"),
    [
        (
            "from company import CompanyStep",
            "CompanyStep",
            "block base `company.CompanyStep` not found: Heir not checked",
        ),
        ("from .gone import GoneStep", "GoneStep", "block base `gone.GoneStep` not found: Heir not checked"),
        ("import somewhere", "somewhere.make()", "block base `somewhere.make()` not found: Heir not checked"),
        ("", "Undefined", "block base `Undefined` not found: Heir not checked"),
    ],
)
def test_what_is_not_found_is_said_once_a_file(tmp_path, statement, base, said):
    write(tmp_path, {"heir.py": heir(statement, base) + BLOCK.format(name="Heir", base=base)})
    (finding,) = analyse([tmp_path], [catalogue().by_code["MOD101"]]).findings
    assert finding.message == said


def test_two_folders_with_files_of_one_name_are_kept_apart(tmp_path):
    plain = "class Base:\n    pass\n"
    for folder, text in {"one": base_file(), "two": plain}.items():
        write(tmp_path, {f"{folder}/base.py": text, f"{folder}/heir.py": heir("from .base import Base")})
    assert flagged(tmp_path / "two") == []
    assert len(analyse([tmp_path], [catalogue().by_code["MOD013"]]).findings) == 2


def test_unreadable_neighbours_are_as_if_they_were_not_there(tmp_path):
    write(tmp_path, {"base.py": "class (", "heir.py": heir("from .base import Base")})
    assert flagged(tmp_path / "heir.py") == [("heir.py", "MOD101")]
    (tmp_path / "base.py").unlink()
    (tmp_path / "base.py").mkdir()
    assert flagged(tmp_path / "heir.py") == [("heir.py", "MOD101")]
