"""What the linter says about one place of a source file."""

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
        path: of the file, as given on the command line joined with what was found below, with forward slashes.
        line: first line, from 1; ``column`` likewise, in characters; ``end_line`` and ``end_column``: last line, and
            one past the last character.
        code: such as ``"MOD003"``; ``name``: the rule's name, such as ``"guidance-scale-input"``.
        kind: subdivision within the rule, such as ``"output-class"``; its level may differ. Empty for most.
        fixable: ``--fix`` can mend it without changing what the code does otherwise.
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
