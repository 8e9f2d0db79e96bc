"""Files that import statements lead to outside of diffusers: linted ones, and those beside them on disk."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..reading.location import module_name, shown
from ..reading.nodes import literal
from ..reading.source import Problem, Source, decode, parse

__all__ = ["Neighbours"]

# Libraries that blocks use everywhere; a folder of that name beside a file would be a checkout of the library.
_LIBRARIES = {"diffusers", "torch", "torchvision", "transformers", "numpy", "PIL", "accelerate", "peft", "tqdm"}
_ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
_HIGHEST = 8  # directories, from that of a file upwards, that may be on ``sys.path``


class Neighbours:
    """Finds the file of a module by its place, as Python does for scripts and packages alike.

    A folder needs no ``__init__.py``: repositories of custom blocks have none, and are imported as packages.
    """

    def __init__(self, texts: Mapping[Path, str]) -> None:
        self._texts = texts
        self._linted: dict[Path, Source] = {}
        self._read: dict[Path, Source | None] = {}
        self._stems: dict[Path, Source | None] = {}
        self._absolute: dict[tuple[Source, str], Source | None] = {}
        self._folders: dict[Path, tuple[Path, ...]] = {}
        self._added: dict[Source, tuple[Path, ...]] = {}
        self._places: dict[Source, Path] = {}

    def add(self, source: Source) -> None:
        """Add a linted file."""
        self._linted.setdefault(self._place(source), source)

    def relative(self, source: Source, level: int, dotted: str) -> Source | None:
        """The module that ``from ..dotted import x`` means in ``source``, with ``level`` dots."""
        folder = self._place(source).parent
        for _ in range(level - 1):
            folder = folder.parent
        return self._at(folder.joinpath(*dotted.split(".")) if dotted else folder, package=not dotted)

    def absolute(self, source: Source, dotted: str) -> Source | None:
        """The module that ``import dotted`` means in ``source``, if it lies beside or above it."""
        top = dotted.partition(".")[0]
        if not top or top in _LIBRARIES or top in sys.stdlib_module_names:
            return None
        if (source, dotted) not in self._absolute:
            stems = (root.joinpath(*dotted.split(".")) for root in self._searched(source))
            found = (self._at(stem) for stem in stems)
            self._absolute[source, dotted] = next((one for one in found if one not in (None, source)), None)
        return self._absolute[source, dotted]

    def _searched(self, source: Source) -> tuple[Path, ...]:
        """The directories that a file may import from: up to the one that holds its repository."""
        folder = self._place(source).parent
        if folder not in self._folders:
            self._folders[folder] = tuple(_searched(folder))
        if "sys.path" not in source.text:
            return self._folders[folder]
        if source not in self._added:
            self._added[source] = tuple(_added(source, folder))
        return (*self._folders[folder], *self._added[source])

    def _place(self, source: Source) -> Path:
        if source not in self._places:
            self._places[source] = Path(os.path.abspath(source.path))
        return self._places[source]

    def _at(self, stem: Path, *, package: bool = False) -> Source | None:
        if stem not in self._stems:
            found = self._file(stem / "__init__.py")
            if found is None and not package:
                found = self._file(stem.with_name(f"{stem.name}.py")) if stem.name else None
            self._stems[stem] = found
        return self._stems[stem]

    def _file(self, path: Path) -> Source | None:
        if path in self._linted:
            return self._linted[path]
        if path not in self._read:
            self._read[path] = self._load(path)
        return self._read[path]

    def _load(self, path: Path) -> Source | None:
        try:
            if path not in self._texts and not path.is_file():
                return None
            text = self._texts[path] if path in self._texts else decode(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return None
        tree = parse(text, str(path))
        if isinstance(tree, Problem):
            return None
        # Shown as the linted files are, so that files of one folder belong together.
        like_linted = all(os.path.isabs(source.path) for source in self._linted.values())
        place = shown(path if like_linted else os.path.relpath(path))
        return Source(place, module_name(path, self._texts), text, tree, linted=False)


def _searched(folder: Path) -> Iterator[Path]:
    directories = [folder, *folder.parents][:_HIGHEST]
    roots = [index for index, one in enumerate(directories) if any((one / marker).exists() for marker in _ROOTS)]
    packages = next((index for index, one in enumerate(directories) if not (one / "__init__.py").is_file()), 0)
    for directory in directories[: (roots[0] if roots else packages) + 1]:
        yield directory
        yield directory / "src"


def _added(source: Source, folder: Path) -> Iterator[Path]:
    """The directories that a file may add to ``sys.path``: those above it, and what it names below one of them."""
    above = [folder, *folder.parents][:_HIGHEST]
    yield from above
    for call in source.nodes(ast.Call):
        function = call.func
        if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "sys.path":
            named = [text for node in source.below(call) if isinstance(node, ast.expr) and (text := literal(node))]
            for directory in above if named else ():
                yield Path(os.path.normpath(directory.joinpath(*named)))
