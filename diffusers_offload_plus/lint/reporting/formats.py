"""The output formats by name: each is a function from a report to text, and all show the same findings."""

from __future__ import annotations

from collections.abc import Callable

from ..running.report import Report

__all__ = ["FORMATS", "formatter"]

FORMATS = ("text", "json", "github", "sarif")


def formatter(name: str) -> Callable[[Report], str]:
    """The function that writes a report in the format called ``name``; text comes without colours."""
    # Imported here because a run uses one of them, and some take a while.
    if name == "json":
        from .json_format import render
    elif name == "github":
        from .github_format import render
    elif name == "sarif":
        from .sarif_format import render
    else:
        from .text_format import render
    return render
