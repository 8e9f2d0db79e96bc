"""The process that imports the linted code, so that nothing the code does reaches the linter's own process."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .facts import facts_of

__all__ = ["describe", "main"]


def main() -> None:
    """Read what to import from standard input, write what was found to the descriptor in ``argv``."""
    request = json.load(sys.stdin)
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as answer:
        # The linted code may print; standard output belongs to the findings.
        os.dup2(2, 1)
        for item in request:
            answer.write(json.dumps(describe(item)) + "\n")
            answer.flush()


def describe(item: dict[str, Any]) -> dict[str, Any]:
    """Import one file and instantiate the blocks it defines.

    Args:
        item: ``path``, ``module`` (empty outside of a package), ``root`` (to import it from) and ``classes``.
    """
    answer: dict[str, Any] = {"path": item["path"], "blocks": {}, "errors": {}, "error": ""}
    try:
        module = _imported(item)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        answer["error"] = f"{type(error).__name__}: {error}"
        return answer
    for name in item["classes"]:
        value = getattr(module, name, None)
        if not inspect.isclass(value):
            continue
        try:
            answer["blocks"][name] = facts_of(value()).as_data()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            # A block that needs arguments is no problem: blocks that run it pass them.
            if not (isinstance(error, TypeError) and "required" in str(error) and "argument" in str(error)):
                answer["errors"][name] = f"{type(error).__name__}: {error}"
    return answer


def _imported(item: dict[str, Any]) -> ModuleType:
    name, path = item["module"], item["path"]
    if not name:
        name = f"linted_{Path(path).stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no importable file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    _reach(name, Path(item["root"]))
    module = importlib.import_module(name)
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, path):
        raise ImportError(f"the module {name} is found in {found} instead; install the package you lint")
    return module


def _reach(name: str, root: Path) -> None:
    """Make ``name`` importable from ``root``."""
    top = name.split(".")[0]
    if (root / top / "__init__.py").is_file():
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        return
    # A folder with some families only, without the rest of diffusers, is added to the installed package.
    package = root / Path(*name.split(".")[:2])
    if name.startswith("diffusers.modular_pipelines.") and package.is_dir():
        parent = importlib.import_module("diffusers.modular_pipelines")
        if str(package) not in parent.__path__:
            parent.__path__.insert(0, str(package))


if __name__ == "__main__":
    main()
