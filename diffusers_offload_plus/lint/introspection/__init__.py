"""What blocks declare at run time, for rules that can use it. Only with ``--introspect``: it runs the linted code."""

from __future__ import annotations

from .asking import introspect
from .merging import Introspection

__all__ = ["Introspection", "introspect"]
