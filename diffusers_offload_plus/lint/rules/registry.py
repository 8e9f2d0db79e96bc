"""All rules there are: those about modular pipelines, and the linter's own."""

from __future__ import annotations

import functools
import inspect

from .base.catalogue import Catalogue
from .base.own_rules import OWN_RULES
from .base.rule import Rule
from .components import config, creation, encoders, noise, use
from .control import loop_work, loops, no_grad, protocol, skips, variants
from .declarations import defaults, params, sizes, unknown
from .guidance import cfg, guider
from .guidance import encoders as guided_encoders
from .state import block_state, by_hand, own, pipeline_state
from .structure import assembly, block_tests, families, imports, lists, reading

__all__ = ["all_rules", "catalogue"]

_MODULES = (
    *(config, creation, encoders, noise, use),
    *(loop_work, loops, no_grad, protocol, skips, variants),
    *(defaults, params, sizes, unknown),
    *(cfg, guided_encoders, guider),
    *(block_state, by_hand, own, pipeline_state),
    *(assembly, block_tests, families, imports, lists, reading),
)


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """One instance of every rule about modular pipelines, sorted by code."""
    classes = (
        value
        for module in _MODULES
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Rule) and value.__module__ == module.__name__
    )
    return tuple(sorted((kind() for kind in classes), key=lambda rule: rule.code))


@functools.cache
def catalogue() -> Catalogue:
    """The catalogue of every rule; the same object at each call."""
    return Catalogue((*all_rules(), *OWN_RULES))
