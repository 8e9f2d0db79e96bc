"""Findings as SARIF 2.1.0, for code scanning."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

from ... import __version__
from ..core.finding import Finding, Level
from ..rules.base.rule import Rule
from ..running.report import Report

__all__ = ["render"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Level.ERROR: "error", Level.WARNING: "warning", Level.INFO: "note", Level.OFF: "none"}


def render(report: Report) -> str:
    """The findings as a SARIF log with one run."""
    indices = {rule.code: index for index, rule in enumerate(report.rules)}
    seen: dict[str, int] = {}
    results = [_result(finding, indices, report, seen) for finding in report.findings]
    run = {
        "tool": {
            "driver": {
                "name": "offload-plus lint",
                "version": __version__,
                "rules": [_rule(rule) for rule in report.rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "results": results,
        "properties": {"classesNotChecked": report.unchecked, "classesCheckedInPart": report.in_part},
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    page = rule.page
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": page.why},
        "help": {"text": f"{page.why}\n\n{page.instead}", "markdown": f"{page.why}\n\n**Instead:** {page.instead}"},
        "defaultConfiguration": {"level": _LEVELS[rule.level], "enabled": rule.level is not Level.OFF},
        "properties": {"tags": ["diffusers", "modular-pipelines"]},
    }


def _result(finding: Finding, indices: dict[str, int], report: Report, seen: dict[str, int]) -> dict[str, Any]:
    result: dict[str, Any] = {"ruleId": finding.code}
    if finding.code in indices:
        result["ruleIndex"] = indices[finding.code]
    return result | {
        "level": _LEVELS[finding.level],
        "message": {"text": f"cell {finding.cell}: {finding.message}" if finding.cell else finding.message},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(finding.path)},
                    "region": {
                        "startLine": finding.lines_shown[0],
                        "startColumn": finding.column,
                        "endLine": finding.lines_shown[1],
                        "endColumn": finding.end_column,
                    },
                }
            }
        ],
        "partialFingerprints": {"offloadPlusLine/v1": _fingerprint(finding, report, seen)},
        "properties": {"kind": finding.kind, "fixable": finding.fixable, "origin": finding.origin.value},
    }


def _uri(path: str) -> str:
    relative = os.path.relpath(path) if os.path.isabs(path) else os.path.normpath(path)
    if relative.startswith(".."):
        return Path(os.path.abspath(path)).as_uri()
    return urllib.parse.quote(relative.replace(os.sep, "/"), errors="surrogateescape")


def _fingerprint(finding: Finding, report: Report, seen: dict[str, int]) -> str:
    """A fingerprint that stays the same while other lines change, so that the next run recognises the alert."""
    lines = report.text(finding.path).split("\n")
    line = lines[finding.line - 1] if finding.line <= len(lines) else ""
    key = f"{finding.code} {finding.path} {' '.join(line.split())}"
    seen[key] = seen.get(key, 0) + 1
    return hashlib.sha256(f"{key} {seen[key]}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
