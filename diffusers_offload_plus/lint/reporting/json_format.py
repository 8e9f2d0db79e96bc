"""Findings as a JSON list of objects."""

from __future__ import annotations

import json
from typing import Any

from ..core.finding import Finding
from ..running.report import Report

__all__ = ["as_object", "render"]


def render(report: Report) -> str:
    """The findings as a JSON list with one object for each."""
    return json.dumps([as_object(finding) for finding in report.findings], indent=2) + "\n"


def as_object(finding: Finding) -> dict[str, Any]:
    """The fields of ``finding`` as a dictionary."""
    return {
        "code": finding.code,
        "name": finding.name,
        "kind": finding.kind,
        "path": finding.path,
        "cell": finding.cell or None,
        "line": finding.lines_shown[0],
        "column": finding.column,
        "end_line": finding.lines_shown[1],
        "end_column": finding.end_column,
        "message": finding.message,
        "level": finding.level.value,
        "fixable": finding.fixable,
        "origin": finding.origin.value,
    }
