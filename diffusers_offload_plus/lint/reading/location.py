"""Places of files: which files to lint, the module name of a path, and where the diffusers source is."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

__all__ = ["enclosing_diffusers", "installed_diffusers", "module_name", "odd_kind", "python_files", "shown"]

_SKIPPED_DIRECTORIES = {"__pycache__", "node_modules", "build", "dist", "site-packages"}


def shown(path: Path | PurePosixPath | str) -> str:
    """A path as users see it."""
    return str(PurePosixPath(*Path(path).parts)) if not isinstance(path, PurePosixPath) else str(path)


def odd_kind(path: Path) -> str:
    """What lies at ``path`` if that is neither a file nor a directory, such as ``"a named pipe"``; else ``""``."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""  # what is wrong is said when it is read
    kinds = {
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((kind for fits, kind in kinds.items() if fits(mode)), "")


def python_files(root: Path, skip: Callable[[Path], bool]) -> Iterator[Path]:
    """The Python files at or below ``root``, sorted, without hidden directories and directories such as ``build``."""
    if root.is_file():
        if not skip(root):
            yield root
        return
    for directory, subdirectories, names in os.walk(root):
        here = Path(directory)
        subdirectories[:] = sorted(
            name
            for name in subdirectories
            if not name.startswith(".") and name not in _SKIPPED_DIRECTORIES and not skip(here / name)
        )
        for name in sorted(names):
            if name.endswith(".py") and not skip(here / name):
                yield here / name


def module_name(path: Path, known: Mapping[Path, str]) -> str:
    """Dotted name of the module at ``path``; ``known`` are files that need not exist on disk.

    A directory called ``diffusers`` is taken for that package, wherever it lies, if it is a package or holds
    ``modular_pipelines``. Elsewhere packages are directories with an ``__init__.py``.
    """
    absolute = Path(os.path.abspath(path))
    parts = absolute.with_suffix("").parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] != "diffusers":
            continue
        package = Path(*parts[: index + 1])
        if parts[index + 1] == "modular_pipelines" or _exists(package / "__init__.py", known):
            return _dotted(parts[index:])
    start = len(parts) - 1
    while start > 0 and _exists(Path(*parts[:start]) / "__init__.py", known):
        start -= 1
    return _dotted(parts[start:]) if start < len(parts) - 1 else ""


def _exists(path: Path, known: Mapping[Path, str]) -> bool:
    return path in known or path.is_file()


def _dotted(parts: Sequence[str]) -> str:
    kept = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(kept)


def enclosing_diffusers(path: Path) -> Path | None:
    """The ``diffusers`` package that ``path`` lies in, if its framework files are there."""
    absolute = Path(os.path.abspath(path))
    for parent in (absolute, *absolute.parents):
        if parent.name == "diffusers" and is_diffusers(parent):
            return parent
    return None


def installed_diffusers() -> Path | None:
    """The installed ``diffusers`` package, found without importing it."""
    try:
        spec = importlib.util.find_spec("diffusers")
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    for location in spec.submodule_search_locations:
        if is_diffusers(Path(location)):
            return Path(location)
    return None


def is_diffusers(package: Path) -> bool:
    return (package / "modular_pipelines" / "modular_pipeline.py").is_file()
