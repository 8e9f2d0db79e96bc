"""The report of a run, which every output format takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..core.finding import Finding
from ..rules.base.rule import Rule

if TYPE_CHECKING:
    from ..settings.baseline import Entry

__all__ = ["Report"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of a run.

    Attributes:
        findings: sorted by place.
        files: paths of all files that were looked at.
        rules: the rules that ran.
        text: a function that returns the text of the file at a path.
        suppressed: number of findings that comments suppress; ``known``: number of those in the baseline.
        resolved: entries of the baseline that no finding matches any more.
        unchecked: number of classes that may be blocks, but are not checked because a base class is not found.
        in_part: number of assembled blocks that run blocks which are not found.
    """

    findings: Sequence[Finding]
    files: Sequence[str]
    rules: Sequence[Rule]
    text: Callable[[str], str]
    suppressed: int = 0
    known: int = 0
    resolved: Sequence[Entry] = ()
    unchecked: int = 0
    in_part: int = 0
