"""Rules about using components: blocks declare them, do not change them and do not manage their memory."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.blocks import Block
from ...project.body import Access, Body, Place
from ...project.project import Project
from ...reading.nodes import Dotted
from ..base.accesses import by_place, is_guarded, is_restored, is_restoring, relatives_agree
from ..base.declared import component_names, guiders
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions, own_calls

__all__ = ["ComponentState", "OffloadInBlock", "UndeclaredComponent"]

# Usual names of components, for families of which only a part is linted.
_USUAL = re.compile(
    r"^(transformer|unet|vae|audio_vae|text_encoder|tokenizer|image_encoder|feature_extractor|scheduler|guider|controlnet"
    r"|image_processor|video_processor|safety_checker|processor|connectors|vocoder)(_\d)?$"
)
_CHANGING = re.compile(
    r"^(to|half|float|bfloat16|cuda|cpu|train|requires_grad_|compile|enable_.*|disable_.*|fuse_.*|unfuse_.*|set_attn_.*"
    r"|set_default_attn_processor|register_to_config|add_adapter|set_adapters?|load_lora.*|unload_lora.*|load_state_dict)$"
)
# What a pipeline does to all or to some of its components.
_PIPELINE_CHANGING = re.compile(
    r"^(update_components|load_components|register_components|to|load_lora_weights|unload_lora_weights|(un)?fuse_lora"
    r"|set_adapters|enable_lora|disable_lora|delete_adapters)$"
)
_OFFLOAD = {"maybe_free_model_hooks", "enable_model_cpu_offload", "enable_sequential_cpu_offload"}


def is_component(project: Project, block: Block, name: str) -> bool:
    """Whether ``name`` is a component, and not something that the pipeline class defines."""
    group = block.source.group
    if any(pipeline.find(name) for pipeline in project.pipelines_of(block.source)):
        return False
    names = component_names(project, group)
    return name in names or name in block.components.names or _USUAL.match(name) is not None


class ComponentState(Rule):
    """A block moves, converts, reconfigures or replaces a component."""

    code = "MOD029"
    name = "component-state"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        seen: set[ast.AST] = set()
        for block in own_calls(project):
            known = guiders(project, block.source.group)
            for body in project.flow(block.info).bodies:
                if body.in_pipeline:
                    continue
                yield from self._calls(project, block, body)
            for access in project.flow(block.info).changes:
                if access.place[0] != "components" or len(access.place) < 2:
                    continue
                if not is_component(project, block, access.place[1]):
                    continue
                if (len(access.place) > 2 and access.place[1] in known) or access.name == "_lora_scale":
                    continue
                if access.body.in_pipeline:
                    continue
                if is_restoring(access) or is_restored(access) or _in_finally(access.body, access.node):
                    continue
                node = access.source.statement(access.node)
                if node in seen:
                    continue
                seen.add(node)
                what = "replaces" if len(access.place) == 2 else "writes"
                yield from report(
                    self, access.source, node, f"{what} `{'.'.join(access.place)}`: components are shared"
                )

    def _calls(self, project: Project, block: Block, body: Body) -> Iterator[Finding]:
        for node in body.of(ast.Call):
            if not isinstance(node.func, Dotted):
                continue
            for place in sorted(body.places(node.func)):
                if place[0] == "components" and len(place) == 2 and _PIPELINE_CHANGING.match(place[1]):
                    if not _is_undone(body, node, place):
                        yield from report(self, body.source, node, f"`{'.'.join(place)}`: components are shared")
                    continue
                if place[0] != "components" or len(place) != 3 or not _CHANGING.match(place[2]):
                    continue
                if not is_component(project, block, place[1]) or _is_undone(body, node, place):
                    continue
                yield from report(self, body.source, node, f"`{'.'.join(place)}`: components are shared")


def _in_finally(body: Body, node: ast.AST) -> bool:
    return any(body.source.is_inside(node, statement) for outer in body.of(ast.Try) for statement in outer.finalbody)


def _is_undone(body: Body, node: ast.Call, place: Place) -> bool:
    """Whether a change happens under, right before, or in a ``finally`` that changes the same component."""
    for outer in body.of(ast.Try):
        if not outer.finalbody:
            continue
        final = [inner for statement in outer.finalbody for inner in body.source.below(statement)]
        restored = any(
            isinstance(inner, ast.Call) and any(found[:2] == place[:2] for found in body.places(inner.func))
            for inner in final
        )
        if not restored:
            continue
        inside = any(body.source.is_inside(node, statement) for statement in (*outer.body, *outer.finalbody))
        block = getattr(body.source.parent(outer), "body", [])
        before = outer in block and block.index(outer) and body.source.is_inside(node, block[block.index(outer) - 1])
        if inside or before:
            return True
    return False


class UndeclaredComponent(Rule):
    """A block uses a component that it does not declare."""

    code = "MOD030"
    name = "undeclared-component"
    level = Level.ERROR
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        seen: set[tuple[Block, str]] = set()
        for access, blocks in by_place(project, "components", "read"):
            # What a base class uses may be declared by each of its heirs.
            block = relatives_agree(blocks, [one for one in blocks if self._is_missing(project, one, access)])
            if block is None or (block, access.name) in seen:
                continue
            seen.add((block, access.name))
            message = f"{block.name} reads `components.{access.name}` without declaring that component"
            yield from report(self, access.source, access.node, message)

    def _is_missing(self, project: Project, block: Block, access: Access) -> bool:
        declared = block.declared("expected_components", anywhere=True)
        if access.name in declared.names or not declared.whole or is_guarded(access):
            return False
        probed = project.flow(block.info).of("components", "probe")
        if any(probe.name == access.name and probe.body.function is access.body.function for probe in probed):
            return False  # whether it is there has been asked before
        return is_component(project, block, access.name)


class OffloadInBlock(Rule):
    """A block manages offloading."""

    code = "MOD042"
    name = "offload-in-block"
    level = Level.WARNING
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for body in functions(project):
            if body.in_pipeline:
                continue
            for node in body.of(ast.Call):
                if isinstance(node.func, ast.Attribute) and node.func.attr in _OFFLOAD:
                    statement = body.source.parent(node)
                    message = f"`{node.func.attr}` belongs to the ComponentsManager"
                    yield from report(self, body.source, node, message, fixable=_is_removable(body, statement))


def _is_removable(body: Body, statement: ast.AST | None) -> bool:
    """Whether a statement can go without leaving an empty body."""
    parent = body.source.parent(statement) if isinstance(statement, ast.Expr) else None
    return any(
        statement in (siblings := getattr(parent, field, [])) and len(siblings) > 1 for field in ("body", "orelse")
    )
