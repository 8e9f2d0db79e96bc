"""The rooms of the package: imports point one way, wherever they stand, and one file alone knows diffusers' hooks."""

from __future__ import annotations

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "diffusers_offload_plus"

# From the bottom up. A room may import from itself and from those above it in this list.
ROOMS = [
    "errors",
    "offload.formatting",
    "offload.policy",
    "offload.modes",
    "offload.failures",
    "offload.memory",
    "offload.stores",
    "offload.stores.disk",
    "offload.stores.shared",
    "offload.model",
    "offload.planning",
    "offload.transfer",
    "offload.groups",
    "offload.runtime",
    "offload.hooks",
    "offload.api",
    "lint",
    "testing",
    "demo",
    "commands",
    "cli",
    "__main__",
]
APART = [("offload.stores.disk", "offload.stores.shared"), ("lint", "offload")]
"""Rooms that do not import from one another, in either direction."""

ALL = sorted(PACKAGE.rglob("*.py"))
MOST_FILES = 11  # in a folder, besides its ``__init__.py``


def dotted(path: pathlib.Path) -> str:
    """Name of a module within the package; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in ALL}


def imports(path: pathlib.Path) -> set[str]:
    """Modules of the package that ``path`` imports at any place: in functions and under ``TYPE_CHECKING`` as well."""
    here = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
        for alias in node.names:
            name = f"{base}.{alias.name}".lstrip(".")
            found.add(name if name in MODULES else base)
    return found


def room_of(module: str) -> str:
    """The room that a module belongs to; empty for files that only gather names of others."""
    if module.endswith("__main__"):
        return "__main__"
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len, default="")


@pytest.mark.parametrize("path", ALL, ids=dotted)
def test_imports_point_to_rooms_below(path: pathlib.Path) -> None:
    here = room_of(dotted(path))
    if not here:
        assert dotted(path) in ("", "offload"), f"give {dotted(path)} a room"
        return
    below = ROOMS[: ROOMS.index(here) + 1]
    wrong = {name for name in imports(path) if name and room_of(name) not in below}
    assert not wrong, f"{here} may import from {below}"
    for pair in APART:
        for one, other in (pair, pair[::-1]):
            if dotted(path).startswith(one):
                assert not [name for name in imports(path) if name.startswith(other)]


def test_no_circles_between_modules() -> None:
    """In the whole package, with imports inside functions and for type checking."""
    edges = {name: imports(path) & set(MODULES) - {name} for name, path in MODULES.items() if name}
    done: set[str] = {""}
    while ready := {name for name, needs in edges.items() if name not in done and needs <= done}:
        done |= ready
    assert set(edges) - done == set(), "these import one another"


FOLDERS = sorted({path.parent for path in ALL})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE)))
def test_a_room_is_small_and_says_what_it_is_for(folder: pathlib.Path) -> None:
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert said
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES, f"{len(files)} files: find the rooms in this room"
    if folder.is_relative_to(PACKAGE / "offload") and folder != PACKAGE / "offload":
        assert "May import" in said


@pytest.mark.parametrize("path", ALL, ids=dotted)
def test_every_module_says_what_it_offers(path: pathlib.Path) -> None:
    body = ast.parse(path.read_text()).body
    if path.name == "__main__.py" or all(isinstance(node, ast.Expr) for node in body):
        return
    assigned = [node for node in body if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value]
    listed = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node).startswith("__all__")]
    assert len(listed) == 1
    assert len(set(listed[0])) == len(listed[0])
    module = importlib.import_module(f"{PACKAGE.name}.{dotted(path)}".rstrip("."))
    for name in listed[0]:
        assert hasattr(module, name), name


@pytest.mark.parametrize("path", ALL, ids=dotted)
def test_a_file_holds_one_concept(path: pathlib.Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", ALL, ids=dotted)
def test_only_one_file_imports_the_hooks_of_diffusers(path: pathlib.Path) -> None:
    if path == PACKAGE / "offload" / "hooks" / "diffusers_api.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not any(name.startswith("diffusers.hooks") for name in names)
        if path.is_relative_to(PACKAGE / "offload"):
            assert "diffusers" not in {name.split(".")[0] for name in names}


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, diffusers_offload_plus, diffusers_offload_plus.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    import diffusers_offload_plus as dop

    for name in dop.__all__:
        assert getattr(dop, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dop.nonsense
