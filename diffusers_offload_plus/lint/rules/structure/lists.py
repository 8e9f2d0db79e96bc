"""Rule MOD036: the lists of an assembled block match, and what selects among them can be called."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.values import UNKNOWN, Choice, Constant, FunctionValue, elements
from ...project.blocks import Block
from ...project.project import Project
from ...reading.nodes import Function
from ...resolution.classes import ClassInfo
from ...resolution.modules import parameters
from ..base.report import report
from ..base.rule import Rule

__all__ = ["BlockLists"]


class BlockLists(Rule):
    """The lists of an assembled block do not match, or it selects a block that is not in them."""

    code = "MOD036"
    name = "block-lists"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        broken: set[ClassInfo] = set()
        for block in project.blocks:
            if block.kind == "leaf":
                continue
            problem = _problem(project, block)
            if not problem:
                continue
            broken.add(block.info)
            own = set(block.info.members) & _LISTS
            if own or not any(base in broken for base in block.info.mro[1:]):  # an heir repeats what its base says
                yield from report(self, block.source, block.info.node, f"{block.name}: {problem}")


_LISTS = {"block_classes", "block_names", "block_trigger_inputs", "default_block_name", "select_block"}


def _problem(project: Project, block: Block) -> str:
    lists = ["block_classes", "block_names"] + (["block_trigger_inputs"] if block.kind == "auto" else [])
    lengths: dict[str, int] = {}
    for name in lists:
        values, whole = elements(block.attribute(name))
        if not whole:
            return ""
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        return ", ".join(f"{count} {name}" for name, count in lengths.items())
    names = [value.value for value in elements(block.attribute("block_names"))[0] if isinstance(value, Constant)]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        return f"{twice!r} is in block_names twice, so that the first block of that name is lost"
    if block.info.selects:
        return _default(block, names) or _selection(project, block, names)
    if block.info.loops:
        return next(filter(None, (_as_step(block, label, item.info) for label, item in block.sub_blocks[0])), "")
    return ""


def _as_step(loop: Block, label: object, info: ClassInfo) -> str:
    """What is wrong with a block as a step of a loop; ``""`` if nothing is known to be."""
    if loop.kind == "iterative":
        fits = info.is_loop_step or not info.complete or not info.kind
        return "" if fits else f"{label} ({info.name}) is no ModularLoopPipelineBlocks, which its steps have to be"
    leaf = info.kind in ("leaf", "") or not info.find("block_classes")
    return "" if leaf else f"{label} ({info.name}) is no leaf block, and loops only take leaf blocks"


def _default(block: Block, names: list[object]) -> str:
    default = block.text("default_block_name")
    if default is not None and block.kind == "auto":
        return "an AutoPipelineBlocks has no default_block_name: put None among block_trigger_inputs"
    if default is not None and default not in names:
        return f"default_block_name {default!r} is none of block_names"
    return ""


def _selection(project: Project, block: Block, names: list[object]) -> str:
    """What is wrong with ``select_block``; ``""`` if nothing is known to be."""
    found = block.info.method("select_block")
    if found is None or found[0].source.in_framework:
        abstract = not names or not block.info.complete or block.kind == "auto"
        if abstract or any("select_block" in heir.members for heir in project.heirs.get(block.info, ())):
            return ""
        return "has no select_block, which a ConditionalPipelineBlocks is called for"
    return _signature(block, found[1]) or _selected(project, block, names)


def _signature(block: Block, function: Function) -> str:
    values, whole = elements(block.attribute("block_trigger_inputs"))
    triggers = {value.value for value in values if isinstance(value, Constant) and isinstance(value.value, str)}
    if not whole or len(triggers) < sum(not (isinstance(v, Constant) and v.value is None) for v in values):
        return ""
    given = function.args
    static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list)
    positional = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    taken = set(parameters(function)[0 if static else 1 :])
    refused = sorted(triggers - taken)
    if refused and given.kwarg is None:
        return f"select_block does not take {', '.join(refused)}, which is in block_trigger_inputs"
    optional = set(positional[len(positional) - len(given.defaults) :]) if given.defaults else set()
    needed = [name for name in positional[0 if static else 1 :] if name not in optional]
    needed += [one.arg for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    missing = [name for name in needed if name not in triggers]
    return f"select_block requires {', '.join(missing)}, which is not in block_trigger_inputs" if missing else ""


def _selected(project: Project, block: Block, names: list[object]) -> str:
    method = block.attribute("select_block")
    if not isinstance(method, FunctionValue):
        return ""
    anything = dict.fromkeys(parameters(method.node)[1 if method.instance is not None else 0 :], UNKNOWN)
    result = project.evaluator.call(method, [], dict(anything))
    options = result.options if isinstance(result, Choice) else (result,)
    for option in options:
        if isinstance(option, Constant) and option.value is not None and option.value not in names:
            return f"select_block returns {option.value!r}, which is none of block_names"
    return ""
