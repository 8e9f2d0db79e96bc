"""A finding: one place of a source file that breaks one rule."""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["Finding", "Level", "Origin"]


class Level(enum.StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    OFF = "off"  # not reported


class Origin(enum.StrEnum):
    """How a finding was found."""

    STATIC = "static"  # by reading source
    INTROSPECTION = "introspection"  # by instantiating the block


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Finding:
    """One place that breaks one rule. Sorted by place.

    Attributes:
        path: path of the file: as given on the command line, joined with the part below, with forward slashes.
        line, column: the place where the finding starts, both from 1, columns in characters.
        end_line, end_column: the last line, and one past the last character.
        code: such as ``"MOD003"``; ``name``: the rule's name, such as ``"guidance-scale-input"``.
        kind: a subdivision of the rule, such as ``"output-class"``, which may have another level. Empty for most.
        cell: in a notebook the number of the cell, else 0; ``above``: the number of lines of the cells before it.
        fixable: whether ``--fix`` can fix it without changing anything else that the code does.
    """

    path: str
    line: int
    column: int
    code: str
    message: str
    end_line: int
    end_column: int
    name: str
    level: Level
    kind: str = ""
    fixable: bool = False
    origin: Origin = Origin.STATIC
    cell: int = 0
    above: int = 0

    @property
    def lines_shown(self) -> tuple[int, int]:
        """The first and the last line as they are shown: those of the cell in a notebook."""
        return self.line - self.above, self.end_line - self.above
