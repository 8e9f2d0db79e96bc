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
        rules: those that ran.
        text: gives the text of a file.
        suppressed: how many findings comments suppressed; ``known``: how many the baseline holds.
        resolved: entries of the baseline that nothing matches any more.
    """

    findings: Sequence[Finding]
    files: Sequence[str]
    rules: Sequence[Rule]
    text: Callable[[str], str]
    suppressed: int = 0
    known: int = 0
    resolved: Sequence[Entry] = ()
