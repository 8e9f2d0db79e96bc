"""What the linter imports: the standard library, and other rooms of its own in one direction only."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusers_offload_plus

PACKAGE = Path(diffusers_offload_plus.__file__).parent / "lint"
# From the ground up; a room may import those before it. Topics of rules do not import each other.
ROOMS = """
core reading resolution evaluation project rules.base rules.TOPIC rules settings analysis introspection running
reporting checklist fixes
""".split()  # noqa: SIM905
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Modules of the linter that ``path`` imports, at any depth and for type checkers too."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not 0 < node.level <= len(package) + 1:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        for name in node.names:
            found = PACKAGE.joinpath(*filter(None, base))
            yield module(found / f"{name.name}.py" if found.is_dir() else found.with_suffix(".py"))


def room(name: str) -> str:
    parent = name.rpartition(".")[0]
    return "rules.TOPIC" if parent.startswith("rules.") and parent != "rules.base" else parent


@pytest.mark.parametrize("path", FILES, ids=module)
def test_rooms_import_those_below(path: Path) -> None:
    here = module(path)
    for name in imported(path) if path.name != "__init__.py" else ():
        same = name.rpartition(".")[0] == here.rpartition(".")[0]
        assert same or ROOMS.index(room(name)) < ROOMS.index(room(here)), f"{here} imports {name}"


def test_no_circles() -> None:
    graph = {module(path): set(imported(path)) for path in FILES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda folder: folder.name)
def test_rooms_are_small_and_say_what_they_are_for(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 11
    (docstring,) = ast.parse((folder / "__init__.py").read_text()).body
    assert "mport" in ast.unparse(docstring)


def test_only_the_standard_library_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules);"
        "import diffusers_offload_plus.lint.analysis.analyse;"
        "from diffusers_offload_plus.lint.rules.registry import all_rules; all_rules();"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(output.split()) - sys.stdlib_module_names == {"diffusers_offload_plus"}
