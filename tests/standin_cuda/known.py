"""Tests that do not pass on the stand-in for CUDA, each with the reason."""

from __future__ import annotations

import re

__all__ = ["KNOWN", "reason_for"]

KNOWN: dict[str, str] = {}
"""Regular expressions for ids of tests, as pytest writes them, with the reason why those fail."""


def reason_for(test: str) -> str | None:
    """Why ``test`` fails; None where it should pass."""
    return next((reason for pattern, reason in KNOWN.items() if re.search(pattern, test)), None)
