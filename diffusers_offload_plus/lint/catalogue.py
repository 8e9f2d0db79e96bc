"""All rules there are: those about modular pipelines, and the linter's own."""

from __future__ import annotations

import functools

from .own_rules import OWN_RULES
from .selection import Catalogue

__all__ = ["catalogue"]


@functools.cache
def catalogue() -> Catalogue:
    """Every rule; the same object at each call."""
    from .rules import all_rules

    return Catalogue((*all_rules(), *OWN_RULES))
