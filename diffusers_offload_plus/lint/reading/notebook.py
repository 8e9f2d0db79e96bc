"""Notebooks, read as one Python text whose lines are those of the code cells."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import warnings
from typing import Any

__all__ = ["Cell", "Notebook", "NotebookError", "is_notebook", "read_notebook"]

_MAGIC = re.compile(r"^(\s*)(%(?!%)|!|\?|[\w.]+\?{1,2}\s*$)")
_CELL_MAGIC = re.compile(r"^\s*%%(\w+)")
_OF_PYTHON = {"time", "timeit", "capture", "prun", "python", "python3", "debug"}


class NotebookError(Exception):
    """What is read is no notebook, or none of Python. The message says why."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A code cell: its number among all cells, from 1, its first line in the text, and how many lines it has."""

    number: int
    first: int
    lines: int


@dataclasses.dataclass(frozen=True)
class Notebook:
    """A notebook as Python text.

    Attributes:
        text: the lines of all code cells, without commands to the notebook and cells that cannot be parsed.
        cells: the code cells. ``broken``: errors of cells that cannot be parsed, with their line in ``text``.
    """

    text: str
    cells: tuple[Cell, ...]
    broken: tuple[tuple[int, SyntaxError], ...]

    def cell_at(self, line: int) -> Cell | None:
        """The cell that a line of the text belongs to."""
        return next((cell for cell in self.cells if cell.first <= line < cell.first + cell.lines), None)


def is_notebook(path: str) -> bool:
    """Whether a file is a notebook by its name."""
    return path.endswith(".ipynb")


def read_notebook(text: str) -> Notebook:
    """The notebook whose file holds ``text``.

    Raises:
        NotebookError: the text is no notebook, or one of another language.
    """
    lines: list[str] = []
    cells: list[Cell] = []
    broken: list[tuple[int, SyntaxError]] = []
    for number, source in _code(text):
        own = _python(source)
        try:
            with warnings.catch_warnings(action="ignore"):
                ast.parse("\n".join(own))
        except SyntaxError as error:
            broken.append((len(lines) + (error.lineno or 1), error))
            own = [""] * len(own)
        except (ValueError, RecursionError, MemoryError):
            own = [""] * len(own)
        cells.append(Cell(number, len(lines) + 1, len(own)))
        lines += own
    return Notebook("\n".join(lines) + "\n", tuple(cells), tuple(broken))


def _code(text: str) -> list[tuple[int, str]]:
    """The numbers and texts of the code cells."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotebookError(f"is no notebook: {error}") from error
    cells = data.get("cells") if isinstance(data, dict) else None
    if not isinstance(cells, list):
        raise NotebookError("is no notebook that can be read: expected a list of cells, as format 4 has it")
    metadata = data.get("metadata")
    kernel = metadata.get("kernelspec") if isinstance(metadata, dict) else None
    language = kernel.get("language", "python") if isinstance(kernel, dict) else "python"
    if isinstance(language, str) and language.lower() not in ("python", "ipython", ""):
        raise NotebookError(f"is a notebook of {language}: only Python is linted")
    found = []
    for number, cell in enumerate(cells, 1):
        source = cell.get("source", "") if isinstance(cell, dict) and cell.get("cell_type") == "code" else None
        if isinstance(source, list):
            source = "".join(part for part in source if isinstance(part, str))
        if isinstance(source, str):
            found.append((number, source))
    return found


def _python(source: str) -> list[str]:
    """The lines of a cell with commands to the notebook replaced by nothing that matters."""
    lines = source.replace("\r\n", "\n").split("\n")
    magic = _CELL_MAGIC.match(lines[0])
    if magic is not None:
        if magic[1] not in _OF_PYTHON:
            return [""] * len(lines)
        lines[0] = ""
    return [f"{found[1]}pass" if (found := _MAGIC.match(line)) else line for line in lines]
