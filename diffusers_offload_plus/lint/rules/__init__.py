"""The rules, one class each."""

from __future__ import annotations

import functools
import importlib
import inspect

from ..rule import Rule

__all__ = ["all_rules", "rule_by_code"]

_TOPICS = (
    "imports",
    "guidance",
    "guider",
    "cfg",
    "encoders",
    "components",
    "state",
    "pipeline_state",
    "control",
    "protocol",
    "variants",
    "noise",
    "loops",
    "params",
    "defaults",
    "assembly",
    "use",
    "families",
    "tests",
)


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """One instance of every rule, sorted by code."""
    found: dict[str, Rule] = {}
    for topic in _TOPICS:
        module = importlib.import_module(f".{topic}", __name__)
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, Rule) and value.__module__ == module.__name__:
                found[value.code] = value()
    return tuple(found[code] for code in sorted(found))


def rule_by_code(code: str) -> Rule | None:
    """The rule called ``code``, such as ``"MOD003"``."""
    return next((rule for rule in all_rules() if rule.code == code), None)
