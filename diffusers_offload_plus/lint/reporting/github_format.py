"""Findings as workflow commands, which GitHub shows beside the lines of a pull request."""

from __future__ import annotations

import os

from ..core.finding import Finding, Level
from ..running.report import Report

__all__ = ["render"]

_COMMANDS = {Level.ERROR: "error", Level.WARNING: "warning", Level.INFO: "notice"}


def render(report: Report) -> str:
    """The findings as workflow commands, one for each."""
    return "".join(f"{_command(finding)}\n" for finding in report.findings)


def _command(finding: Finding) -> str:
    line, end_line = finding.lines_shown
    properties = {"file": _path(finding.path), "line": line, "endLine": end_line}
    if finding.line == finding.end_line:  # columns are only understood within one line
        properties |= {"col": finding.column, "endColumn": finding.end_column}
    properties["title"] = f"{finding.code} {finding.name}" + (f" (cell {finding.cell})" if finding.cell else "")
    shown = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    return f"::{_COMMANDS[finding.level]} {shown}::{_data(finding.message)}"


def _path(path: str) -> str:
    """The path relative to the checkout, as GitHub names files, wherever in it the command runs."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if not workspace:
        return path
    relative = os.path.relpath(os.path.abspath(path), workspace)
    return path if relative.startswith("..") else relative.replace(os.sep, "/")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
