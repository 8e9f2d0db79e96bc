"""Answers of the framework's own block classes: the inputs, outputs and components of assembled blocks."""

from __future__ import annotations

from typing import Any

from ..resolution.classes import ClassInfo
from .values import (
    UNKNOWN,
    Attributes,
    Choice,
    ClassValue,
    Constant,
    Dictionary,
    Instance,
    Items,
    Spec,
    Value,
    elements,
)

__all__ = ["DECLARED", "framework_attribute", "skippable", "sub_blocks"]

DECLARED = {
    "inputs": "loop_inputs",
    "intermediate_outputs": "loop_intermediate_outputs",
    "expected_components": "loop_expected_components",
    "expected_configs": "loop_expected_configs",
}
_EMPTY = {*DECLARED, *DECLARED.values(), "block_classes", "block_names", "block_trigger_inputs"}


def framework_attribute(evaluator: Attributes, instance: Instance, name: str, after: ClassInfo | None) -> Value | None:
    """The value of ``instance.name`` if the framework defines it; ``None`` if a class of the block's own does."""
    info = instance.info
    if not info.kind:
        return None
    if name == "sub_blocks":
        if "sub_blocks" in instance.attributes:
            return instance.attributes["sub_blocks"]
        found, whole = sub_blocks(evaluator, instance)
        return Dictionary(dict(found), not whole)
    if name == "model_name" and info.is_assembled and _answered_by_framework(info, name, after):
        names = [evaluator.attribute(block, name) for _, block in sub_blocks(evaluator, instance)[0]]
        return next((value for value in names if not (isinstance(value, Constant) and value.value is None)), UNKNOWN)
    if name == "outputs":
        name = "intermediate_outputs" if _answered_by_framework(info, name, after) else name
    if name not in _EMPTY or not _answered_by_framework(info, name, after):
        return None
    if name not in DECLARED:
        return Items([], not info.complete) if name == "block_classes" or info.complete else UNKNOWN
    key = f"framework {name}"
    if key not in instance.cache:
        instance.cache[key] = Items([], True)  # ends cycles
        instance.cache[key] = _combined(evaluator, instance, name)
    cached: Items = instance.cache[key]
    return Items(list(cached.items), cached.open)  # a copy, since the caller may add to the list


def _answered_by_framework(info: ClassInfo, name: str, after: ClassInfo | None) -> bool:
    found = info.find(name, after=after)
    return found is None or found[0].source.in_framework


def sub_blocks(evaluator: Attributes, instance: Instance) -> tuple[list[tuple[Any, Value]], bool]:
    """The names and blocks that an assembled block runs, and whether the list is complete."""
    given = instance.attributes.get("sub_blocks")
    if isinstance(given, Dictionary) and given.items:
        return list(given.items.items()), not given.open
    if instance.info.kind == "leaf":
        return [], True
    blocks, whole = elements(evaluator.attribute(instance, "block_classes"))
    names, named = elements(evaluator.attribute(instance, "block_names"))
    found: list[tuple[Any, Value]] = []
    for index, value in enumerate(blocks):
        name: Any = index
        if named and index < len(names):
            key = names[index]
            name = key.value if isinstance(key, Constant) and isinstance(key.value, str) else index
        for option in value.options if isinstance(value, Choice) else (value,):
            if isinstance(option, ClassValue):
                option = evaluator.default_instance(option.info)
            if isinstance(option, Instance) and option is not instance:
                found.append((name, option))
            else:
                whole = False
    return found, whole


def _combined(evaluator: Attributes, instance: Instance, name: str) -> Items:
    """The framework's answer for a declaration: nothing for a leaf, otherwise what the blocks below declare."""
    kind = instance.info.kind
    if kind == "leaf":
        return Items([], not instance.info.complete)
    blocks, whole = sub_blocks(evaluator, instance)
    found: list[Value] = []
    seen: set[str | None] = set()
    produced: set[str | None] = set()

    def add(values: list[Value]) -> None:
        for value in values:
            key = _key(value)
            if name == "inputs" and kind == "sequential" and isinstance(value, Spec) and value.name is None:
                key = None  # the framework compares names alone there, so that one kwargs_type hides the next
            if key not in seen and not (name == "inputs" and key in produced):
                seen.add(key)
                found.append(value)

    if instance.info.loops:
        own, known = elements(evaluator.attribute(instance, DECLARED[name]))
        add(own)
        whole = whole and known
    for _, block in blocks:
        values, known = elements(evaluator.attribute(block, name))
        whole = whole and known
        add(values)
        if name == "inputs" and (kind == "sequential" or instance.info.loops) and not skippable(evaluator, block):
            outputs, _ = elements(evaluator.attribute(block, "intermediate_outputs"))
            produced |= {_key(output) for output in outputs}
    return Items(found, not whole)


def skippable(evaluator: Attributes, block: Value) -> bool:
    """Whether ``block`` selects among others and may select none of them."""
    if not isinstance(block, Instance) or not block.info.selects:
        return False
    default = evaluator.attribute(block, "default_block_name")
    triggers, _ = elements(evaluator.attribute(block, "block_trigger_inputs"))
    if block.info.kind == "auto":
        return not any(isinstance(trigger, Constant) and trigger.value is None for trigger in triggers)
    return not (isinstance(default, Constant) and default.value is not None)


def _key(value: Value) -> str | None:
    if isinstance(value, Spec):
        kwargs_type = value.constant("kwargs_type")
        return value.name if value.name is not None else f"*_{kwargs_type}"
    return f"?{id(value)}"
