"""The package's layers: imports point one way, and only one file knows diffusers' hooks."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "diffusers_offload_plus"

# From the ground up; a module may import only those named before it.
ORDER = [
    "errors",
    *(
        f"offload.{name}"
        for name in ("policy", "tensors", "stores.layout", "stores.host", "partition", "inventory", "plan")
    ),
    *(
        f"offload.{name}"
        for name in ("transfer", "group", "schedule", "inputs", "residents", "loans", "structure", "doors")
    ),
    *(f"offload.{name}" for name in ("saved", "engine", "copying", "diffusers_door", "hook", "targets", "preflight")),
    *(f"offload.{name}" for name in ("onloading", "report", "enabling", "extending")),
]


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: pathlib.Path) -> set[str]:
    """Modules of the package that ``path`` imports when it is loaded or run; those for type checking alone are left
    out."""
    here = ["diffusers_offload_plus", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            found.add(".".join(base[1:]))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


ENGINE = sorted(path for path in (PACKAGE / "offload").rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", ENGINE, ids=module_name)
def test_imports_point_down(path: pathlib.Path) -> None:
    name = module_name(path)
    assert name in ORDER, f"give {name} a place in the layers"
    allowed = set(ORDER[: ORDER.index(name)])
    assert imports(path) <= allowed


@pytest.mark.parametrize("path", ENGINE, ids=module_name)
def test_one_door_to_diffusers(path: pathlib.Path) -> None:
    text = path.read_text()
    if path.name != "diffusers_door.py":
        assert "import diffusers" not in text
        assert "from diffusers" not in text
    assert "__all__" in text
    assert len(text.splitlines()) <= 420


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, diffusers_offload_plus, diffusers_offload_plus.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    import diffusers_offload_plus as dop

    for name in dop.__all__:
        assert getattr(dop, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dop.nonsense
