"""Questions about the declarations of a family of blocks."""

from __future__ import annotations

from ...evaluation.values import Constant, Spec, elements
from ...project.blocks import Block, Declared
from ...project.flow import takes_block_state
from ...project.project import Project, once

__all__ = [
    "component_names",
    "declared_names",
    "guiders",
    "has_guider",
    "in_loop",
    "is_guider",
    "kept",
    "tagged_names",
    "triggers",
]


def in_loop(project: Project, block: Block) -> bool:
    """Whether a block is a step that shares the block state of its loop: listed in one, or written like one."""
    method = block.info.method("__call__")
    loops = project.loops_of(block)
    if any(loop.kind == "iterative" for loop in loops) or block.info.is_loop_step:
        return False  # these give each step a block state of its own
    return bool(loops) or (block.kind == "leaf" and method is not None and takes_block_state(method[1]))


@once
def component_names(project: Project, group: str) -> set[str]:
    """The names of the components that the blocks of a family declare."""
    found: set[str] = set()
    for block in project.blocks_of(group):
        found |= block.components.names
    return found


@once
def tagged_names(project: Project, group: str) -> dict[str, set[str]]:
    """The names that a family declares with each ``kwargs_type``."""
    found: dict[str, set[str]] = {}
    for block in project.blocks_of(group):
        specs: list[Spec] = [*block.declared("intermediate_outputs", anywhere=True).specs]
        specs += block.declared("inputs", anywhere=True).specs
        for spec in specs:
            kind = spec.constant("kwargs_type")
            if isinstance(kind, str) and spec.name is not None:
                found.setdefault(kind, set()).add(spec.name)
    return found


def kept(block: Block) -> tuple[Declared, Declared]:
    """The inputs and outputs that the block state of ``block`` is for; a loop that can be nested has its own only."""
    own = "loop_" if block.kind == "iterative" else ""
    return block.declared(f"{own}inputs", anywhere=True), block.declared(f"{own}intermediate_outputs", anywhere=True)


@once
def declared_names(project: Project, block: Block) -> tuple[set[str], bool]:
    """The names that a block may use on its block state, and whether the list is complete."""
    inputs, outputs = kept(block)
    names = set(inputs.names | outputs.names)
    for kind in inputs.kwargs_types | outputs.kwargs_types:
        names |= tagged_names(project, block.source.group).get(kind, set()) | {kind}
    return names, inputs.whole and outputs.whole


def is_guider(spec: Spec) -> bool:
    """Whether a component is a guider, by its name or its type."""
    if spec.name is not None and spec.name.startswith("guider"):
        return True
    return spec.type_name.startswith("diffusers.guiders.") or spec.type_name.endswith("Guidance")


@once
def guiders(project: Project, group: str) -> set[str]:
    """The names of the guider components in the blocks of a family."""
    found = {"guider"}
    for block in project.blocks_of(group):
        found |= {spec.name for spec in block.components.specs if spec.name is not None and is_guider(spec)}
    return found


def has_guider(block: Block) -> bool:
    """Whether a block, or any block below it, declares a guider."""
    return any(is_guider(spec) for spec in block.components.specs)


@once
def triggers(project: Project, group: str) -> set[str]:
    """The names of the inputs that select among blocks in a family."""
    found: set[str] = set()
    for block in project.blocks_of(group):
        if block.info.selects:
            items = elements(block.attribute("block_trigger_inputs"))[0]
            found |= {item.value for item in items if isinstance(item, Constant) and isinstance(item.value, str)}
    return found
