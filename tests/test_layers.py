"""The package's layers: imports point one way, and only one file knows diffusers' hooks."""

from __future__ import annotations

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "diffusers_offload_plus"

# From the ground up; a module may import only those named before it.
ORDER = """
errors
offload.sizes offload.tables offload.memory
offload.stores.layout offload.stores.direct offload.stores.mapped_file offload.stores.home offload.stores.host
offload.stores.disk
offload.stores.shared_memory offload.stores.steward offload.stores.meeting offload.stores.shared_host
offload.stores.checkpoint_files offload.stores.store_file offload.stores.directory offload.stores.matching
offload.stores.disk_placement offload.stores.maintenance
offload.auto_limit offload.policy offload.tensors offload.partition offload.inventory offload.step_model
offload.residency offload.keeping offload.plan
offload.slots offload.device_budget offload.fitting
offload.modes offload.reader offload.staging offload.waits offload.transfer offload.tiers offload.group
offload.schedule offload.window offload.passes
offload.inputs offload.outputs offload.residents offload.loans offload.structure offload.doors offload.saved
offload.engine offload.copying offload.diffusers_door offload.hook offload.targets offload.preflight
offload.stalls offload.onloading offload.report offload.enabling offload.planning offload.extending offload.loading
offload.blueprint
""".split()  # noqa: SIM905


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


ALL = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", ALL, ids=module_name)
def test_every_module_says_what_it_offers(path: pathlib.Path) -> None:
    body = ast.parse(path.read_text()).body
    if path.name == "__main__.py" or all(isinstance(node, ast.Expr) for node in body):
        return
    assigned = [node for node in body if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value]
    listed = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node).startswith("__all__")]
    assert len(listed) == 1
    assert len(set(listed[0])) == len(listed[0])
    for name in listed[0]:
        assert hasattr(importlib.import_module(dotted(path)), name), name


def dotted(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", ALL, ids=module_name)
def test_only_one_file_imports_the_hooks_of_diffusers(path: pathlib.Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert path.name == "diffusers_door.py" or not any(n.startswith("diffusers.hooks") for n in names)


@pytest.mark.parametrize("path", ALL, ids=module_name)
def test_nothing_below_imports_the_command_line(path: pathlib.Path) -> None:
    above = ("cli", "commands", "demo", "lint", "testing", "__main__")
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part not in above:
        assert not [name for name in imports(path) if name.split(".")[0] in above]
    if path.stem not in ("__main__", "cli"):
        assert "cli" not in imports(path)


def test_no_cycles_between_modules() -> None:
    """At module level, in the whole package; imports inside functions may point anywhere."""
    known = {dotted(path): path for path in ALL}
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        found = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
        edges[name] = found & set(known)
    done: set[str] = set()
    while ready := {name for name, needs in edges.items() if name not in done and needs <= done}:
        done |= ready
    assert set(edges) - done == set(), "these import one another"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, diffusers_offload_plus, diffusers_offload_plus.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    import diffusers_offload_plus as dop

    for name in dop.__all__:
        assert getattr(dop, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dop.nonsense
