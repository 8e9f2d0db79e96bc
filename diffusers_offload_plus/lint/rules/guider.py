"""The guider is shared, and not for blocks to change."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..finding import Finding, Level
from ..project import Block, Project, Source
from ..project.body import Access
from ..project.values import ClassValue, External, Spec
from ..rule import Example, Rule
from .report import BODY_LINE, blocks_example, report

__all__ = ["GuiderMutation", "guiders", "has_guider", "is_guider", "is_restored", "is_restoring"]


def is_guider(spec: Spec) -> bool:
    """Whether a component is a guider, by its name or its type."""
    if spec.name is not None and spec.name.startswith("guider"):
        return True
    hint = spec.fields.get("type_hint")
    dotted = hint.info.dotted if isinstance(hint, ClassValue) else hint.dotted if isinstance(hint, External) else ""
    return dotted.startswith("diffusers.guiders.") or dotted.endswith("Guidance")


def guiders(project: Project, group: str) -> set[str]:
    """Names of the guider components in the blocks of a family."""
    found = {"guider"}
    for block in project.blocks_of(group):
        found |= {spec.name for spec in block.components.specs if spec.name is not None and is_guider(spec)}
    return found


def has_guider(block: Block) -> bool:
    """Whether a block, or any block below it, declares a guider."""
    return any(is_guider(spec) for spec in block.components.specs)


class GuiderMutation(Rule):
    """MOD004."""

    code = "MOD004"
    name = "guider-mutation"
    level = Level.ERROR
    summary = "A block changes an attribute of a guider."
    why = "The guider is shared: pipelines that use it after this block, and the user who set it up, see the change."
    instead = "Let users configure the guider, or register a second guider as a component of its own."
    allowed = (
        "The guider's protocol: `set_state`, `prepare_inputs`, `prepare_models` and the like.",
        "Writes to what a guider returns, such as `guider_state_batch.noise_pred`.",
        "Storing a guider on the block state.",
        "Saving an attribute and restoring it in `finally`.",
    )
    gotcha = "Blocks do not set the guider's parameters by hand; its configuration is the user's."
    invalid = (
        Example(
            source=blocks_example(
                "components.guider.guidance_scale = block_state.scale\n"
                "guider = components.guider\nguider.enabled = False",
                inputs='InputParam("scale", description="A scale.")',
                components='ComponentSpec("guider", torch.nn.Module)',
            ),
            lines=(BODY_LINE, BODY_LINE + 2),
            note="directly and through an alias",
        ),
        Example(
            source=blocks_example('setattr(components.guider, "guidance_scale", 1.0)'),
            lines=(BODY_LINE,),
        ),
    )
    valid = (
        Example(
            source=blocks_example(
                "components.guider.set_state(step=0, num_inference_steps=1, timestep=None)\n"
                "for batch in components.guider.prepare_inputs({}):\n    batch.noise_pred = None"
            ),
            note="the protocol",
        ),
        Example(
            source=blocks_example(
                "saved = components.guider.zero_init_steps\ntry:\n    components.guider.zero_init_steps = 0\n"
                "finally:\n    components.guider.zero_init_steps = saved"
            ),
            note="restored whatever happens",
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            known = project.cached(("guiders", block.source.group), guiders, project, block.source.group)
            for access in project.flow(block.info).changes:
                place = access.place
                if place[0] != "components" or len(place) < 3:
                    continue
                if place[1] not in known or is_restoring(access) or is_restored(access):
                    continue
                what = f"`{'.'.join(place)}`"
                node = access.source.statement(access.node)
                yield from report(self, access.source, node, f"writes {what}: the guider is shared")


def is_restoring(access: Access) -> bool:
    """Whether a write puts back what was read from the same place before."""
    value = access.value
    if not isinstance(value, ast.Name):
        return False
    return any(
        any(isinstance(target, ast.Name) and target.id == value.id for target in node.targets)
        and node.lineno < access.node.lineno
        and access.place in access.body.places(node.value)
        for node in access.body.of(ast.Assign)
    )


def is_restored(access: Access) -> bool:
    """Whether a write happens under, or right before, a ``try`` whose ``finally`` writes the same place."""
    statement = access.source.statement(access.node)
    for node in access.body.of(ast.Try):
        if not node.finalbody:
            continue
        inside = any(access.source.is_inside(access.node, child) for child in node.body)
        before = _next_statement(access.source, statement) is node
        if not inside and not before:
            continue
        written = [inner for child in node.finalbody for inner in access.source.within(child, ast.Attribute)]
        if any(
            isinstance(inner.ctx, ast.Store)
            and access.place in {(*p, inner.attr) for p in access.body.places(inner.value)}
            for inner in written
        ):
            return True
    return False


def _next_statement(source: Source, statement: ast.AST) -> ast.AST | None:
    parent = source.parent(statement)
    for field in ("body", "orelse", "finalbody"):
        body = getattr(parent, field, None)
        if isinstance(body, list) and statement in body:
            index = body.index(statement)
            return body[index + 1] if index + 1 < len(body) else None
    return None
