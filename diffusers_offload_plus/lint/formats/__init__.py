"""How findings are written: each format is a function from a report to text, and all show the same findings."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["FORMATS", "formatter"]

FORMATS = ("text", "json", "github", "sarif")


def formatter(name: str) -> Callable[[Report], str]:
    """The function that writes a report in the format called ``name``; text comes without colours."""
    module = importlib.import_module(f".{name}_format", __name__)
    return cast("Callable[[Report], str]", module.render)
