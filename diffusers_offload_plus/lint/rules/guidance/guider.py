"""Rules about the guider: users configure it, so blocks neither change it nor take inputs in its place."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...evaluation.values import Spec
from ...project.blocks import Block
from ...project.body import Body, Place
from ...project.project import Project, once
from ...reading.nodes import name_of, passed
from ..base.accesses import is_restored, is_restoring
from ..base.declared import guiders, has_guider
from ..base.names import is_scale_name
from ..base.report import report
from ..base.rule import Rule
from .cfg import manual_guidance
from .combination import combinations, of_predictions

__all__ = ["GuidanceScaleInput", "GuiderMutation"]


def naming_argument(spec: Spec) -> ast.expr:
    """The argument that names a declaration; the whole call if there is none."""
    for keyword in spec.call.keywords:
        if keyword.arg == "name":
            return keyword.value
    return spec.call.args[0] if spec.call.args and not isinstance(spec.call.args[0], ast.Starred) else spec.call


class GuidanceScaleInput(Rule):
    """A block takes `guidance_scale`, or another knob of guidance, as an input."""

    code = "MOD003"
    name = "guidance-scale-input"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"no-guider": Level.INFO}

    def check(self, project: Project) -> Iterator[Finding]:
        reported: set[ast.Call] = set()
        for block in project.blocks:
            for spec in block.own("inputs"):
                if spec.name is None or spec.call in reported:
                    continue
                if is_scale_name(spec.name):
                    verdict = self._verdict(project, block, spec.name)
                elif spec.name in _mixing(project, block):
                    verdict = "", "predictions are combined with it where a guider belongs"
                else:
                    verdict = None
                if verdict is not None:
                    reported.add(spec.call)
                    kind, why = verdict
                    message = f"input `{spec.name}` of {block.name}: {why}"
                    yield from report(self, spec.source, naming_argument(spec), message, kind=kind)

    def _verdict(self, project: Project, block: Block, name: str) -> tuple[str, str] | None:
        around = [block, *project.assemblies.get(block.info, ())]
        if any(has_guider(outer) for outer in around):
            return "", "the guider decides on guidance"
        if next(manual_guidance(project, block.source, block.info.node), None) is not None:
            return "", "guidance is computed in the block where a guider belongs"
        if block.kind != "leaf":
            return None
        if self._is_data(project, block, name):
            return None
        return (
            "no-guider",
            "there is no guider, and the value does not reach the denoiser as data; make the choice plain",
        )

    def _is_data(self, project: Project, block: Block, name: str) -> bool:
        """Whether the value is handed to a tensor constructor or a model, or scaled and kept."""
        flow = project.flow(block.info)
        return any(_reaches_call(body, ("block_state", name)) for body in flow.bodies)


@once
def _mixing(project: Project, block: Block) -> set[str]:
    """The inputs by which a block mixes the predictions of a model, whatever they are called."""
    found: set[str] = set()
    for body in project.flow(block.info).bodies if block.info.call is not None else ():
        for one in combinations(project, body.source, body.function):
            if of_predictions(body.source, body.function, one):
                found |= {
                    place[1] for place in body.places(one.scale) if place[0] == "block_state" and len(place) == 2
                }
    return found


_CONSTRUCTORS = {"full", "full_like", "tensor", "as_tensor", "expand", "Tensor", "FloatTensor"}


def _reaches_call(body: Body, place: Place) -> bool:
    """Whether a value is an argument of a constructor of tensors or a model, or is multiplied."""

    def holds(node: ast.AST) -> bool:
        return isinstance(node, ast.Name | ast.Attribute | ast.Call) and place in body.places(node)

    for node in body.of(ast.Call, ast.BinOp):
        if isinstance(node, ast.Call):
            function = node.func
            model = any(found[:1] == ("components",) and len(found) == 2 for found in body.places(function))
            inside = (inner for argument in passed(node) for inner in body.source.below(argument))
            if (name_of(function) in _CONSTRUCTORS or model) and any(map(holds, inside)):
                return True
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and (holds(node.left) or holds(node.right)):
            return True
    return False


class GuiderMutation(Rule):
    """A block changes an attribute of a guider."""

    code = "MOD004"
    name = "guider-mutation"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            known = guiders(project, block.source.group)
            for access in project.flow(block.info).changes:
                place = access.place
                if place[0] != "components" or len(place) < 3:
                    continue
                if place[1] not in known or is_restoring(access) or is_restored(access):
                    continue
                what = f"`{'.'.join(place)}`"
                node = access.source.statement(access.node)
                yield from report(self, access.source, node, f"writes {what}: the guider is shared")
