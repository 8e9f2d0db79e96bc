"""The rules that a run selects, and the levels of their findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..core.finding import Finding, Level
from ..rules.base.catalogue import Catalogue
from ..rules.base.rule import Rule

__all__ = ["Selection"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rules that run, and the levels of what they find.

    Attributes:
        codes: codes of the rules that run.
        levels: chosen levels by ``CODE`` or ``CODE:kind``; the latter wins. Both win over the rules' own levels.
    """

    catalogue: Catalogue
    codes: frozenset[str]
    levels: Mapping[str, Level]

    @property
    def rules(self) -> list[Rule]:
        """The rules that run, by code."""
        return [rule for rule in self.catalogue.rules if rule.code in self.codes]

    def level(self, finding: Finding) -> Level:
        """The level of ``finding`` in this run."""
        for key in (f"{finding.code}:{finding.kind}", finding.code):
            if key in self.levels:
                return self.levels[key]
        return finding.level
