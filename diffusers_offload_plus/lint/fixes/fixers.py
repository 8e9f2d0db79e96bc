"""The function that fixes the findings of each rule. Importing this module needs libcst."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core.finding import Finding
from . import calls, classes, statements
from .edits import Edits

__all__ = ["FIXERS"]

FIXERS: Mapping[str, Callable[[Edits, Finding], None]] = {
    "MOD010": calls.template_semantics,
    "MOD012": calls.defensive_read,
    "MOD013": statements.undeclared_write,
    "MOD017": calls.raw_noise,
    "MOD019": statements.default_in_call,
    "MOD020": statements.state_protocol,
    "MOD021": classes.model_name,
    "MOD022": classes.auto_docstring,
    "MOD038": calls.required_with_default,
    "MOD042": statements.offload_in_block,
}
