"""Guidance belongs to the guider: not to inputs, and not to arithmetic in blocks."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ..finding import Finding, Level
from ..project import Block, Project, Source
from ..project.classes import ClassInfo
from ..project.flow import Access, Body, Place, literal
from ..project.values import ClassValue, External, Spec
from ..rule import Example, Rule
from .report import BODY_LINE, blocks_example, report

__all__ = ["CfgInBlock", "GuidanceScaleInput", "GuiderMutation"]

SCALES = {"guidance_scale", "true_cfg_scale", "cfg_scale", "guidance_rescale"}
FLAGS = {"do_classifier_free_guidance", "do_cfg", "do_true_cfg"}


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
    for block in project.blocks:
        if block.source.group == group:
            found |= {spec.name for spec in block.components.specs if spec.name is not None and is_guider(spec)}
    return found


def has_guider(block: Block) -> bool:
    """Whether a block, or any block below it, declares a guider."""
    return any(is_guider(spec) for spec in block.components.specs)


def is_scale_name(name: str) -> bool:
    """Whether a name speaks of the strength of guidance. Those of ControlNet are another thing."""
    lowered = name.lower()
    if lowered.startswith("control") or "controlnet" in lowered or lowered.endswith(("interval", "start", "end")):
        return False
    return "guidance" in lowered or lowered in SCALES or lowered.endswith("cfg_scale")


def naming_argument(spec: Spec) -> ast.expr:
    """The argument of a declaration that says its name, the call itself if there is none."""
    for keyword in spec.call.keywords:
        if keyword.arg == "name":
            return keyword.value
    return spec.call.args[0] if spec.call.args and not isinstance(spec.call.args[0], ast.Starred) else spec.call


class GuidanceScaleInput(Rule):
    """MOD003."""

    code = "MOD003"
    name = "guidance-scale-input"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"no-guider": Level.INFO}
    summary = "A block takes `guidance_scale`, or another knob of guidance, as an input."
    why = (
        "Users configure the guider. An input of the same name silently fights it, and every other kind of guider has "
        "other knobs, which cannot all be inputs."
    )
    instead = (
        'Declare a guider, `ComponentSpec("guider", ..., config=FrozenDict({"guidance_scale": 4.0}))`, and let it '
        "decide."
    )
    allowed = (
        "Models distilled for guidance: no guider anywhere in the assembled blocks, and the value goes to the "
        "denoiser as data, for example as a guidance embedding.",
        "`guidance_scale` in the `config` of a guider's `ComponentSpec`.",
        "`controlnet_conditioning_scale` and `control_guidance_start` or `_end`.",
    )
    gotcha = (
        "Guidance is configured on the guider, whose kinds differ in their parameters; a pipeline that forwards them "
        "as inputs does not scale. Blocks neither take `guidance_scale` nor decide whether guidance is on."
    )
    invalid = (
        Example(
            source=blocks_example(
                "block_state.noise_pred = components.guider(block_state.guidance_scale)",
                inputs='InputParam("guidance_scale", type_hint=float, default=5.0, description="Strength.")',
                components='ComponentSpec("guider", torch.nn.Module)',
            ),
            lines=(16,),
        ),
        Example(
            source=blocks_example(
                "components.guider(block_state)",
                inputs='InputParam(n, description="Knob.") for n in ("guidance_scale", "guidance_rescale")',
                components='ComponentSpec("guider", torch.nn.Module)',
            ),
            lines=(16,),
            note="names of a comprehension",
        ),
    )
    valid = (
        Example(
            source=blocks_example(
                "guidance = torch.full([1], block_state.guidance_scale)\n"
                "block_state.out = components.transformer(guidance=guidance)",
                inputs='InputParam("guidance_scale", type_hint=float, default=4.0, description="Embedded.")',
                outputs='OutputParam("out", description="Prediction.")',
                components='ComponentSpec("transformer", torch.nn.Module)',
            ),
            note="a guidance embedding, and no guider",
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        reported: set[ast.Call] = set()
        for block in project.blocks:
            for spec in block.own("inputs"):
                if spec.name not in SCALES or spec.call in reported:
                    continue
                verdict = self._verdict(project, block, spec.name or "")
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


_CONSTRUCTORS = {"full", "full_like", "tensor", "as_tensor", "expand", "Tensor", "FloatTensor"}


def _reaches_call(body: Body, place: Place) -> bool:
    """Whether a value is an argument of a constructor of tensors or a model, or is multiplied."""

    def holds(node: ast.AST) -> bool:
        return isinstance(node, ast.Name | ast.Attribute | ast.Call) and place in body.places(node)

    for node in body.of(ast.Call, ast.BinOp):
        if isinstance(node, ast.Call):
            function = node.func
            short = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            model = any(found[:1] == ("components",) and len(found) == 2 for found in body.places(function))
            if short in _CONSTRUCTORS or model:
                arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
                if any(holds(inner) for argument in arguments for inner in ast.walk(argument)):
                    return True
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and (holds(node.left) or holds(node.right)):
            return True
    return False


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
            for access in project.flow(block.info).accesses:
                place = access.place
                if access.kind not in ("write", "augment", "delete") or place[0] != "components" or len(place) < 3:
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
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == value.id for target in node.targets)
        and node.lineno < access.node.lineno
        and access.place in access.body.places(node.value)
        for node in access.body.of(ast.Assign)
    )


def is_restored(access: Access) -> bool:
    """Whether a write happens under, or right before, a ``try`` whose ``finally`` writes the same place."""
    statement = access.source.statement(access.node)
    for node in access.body.of(ast.Try):
        if not isinstance(node, ast.Try) or not node.finalbody:
            continue
        inside = any(inner is access.node for child in node.body for inner in ast.walk(child))
        before = _next_statement(access.source, statement) is node
        if not inside and not before:
            continue
        written = [inner for child in node.finalbody for inner in ast.walk(child) if isinstance(inner, ast.Attribute)]
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


class CfgInBlock(Rule):
    """MOD005."""

    code = "MOD005"
    name = "cfg-in-block"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"shape": Level.WARNING}
    summary = "A block decides on, or computes, classifier-free guidance itself."
    why = "That bypasses every guider: none of them can be swapped in, and their settings do nothing."
    instead = "Give the denoiser's batches to `components.guider`, and ask `guider.num_conditions` how many there are."
    allowed = (
        "`requires_unconditional_embeds`, `guider.num_conditions > 1` and `guider._enabled`.",
        "The same arithmetic on latents or masks, where the factor is no scale of guidance.",
        "Parameters of copied helpers.",
        "Checks that only raise.",
    )
    gotcha = GuidanceScaleInput.gotcha
    invalid = (
        Example(
            source=blocks_example(
                "do_cfg = block_state.scale != 1", inputs='InputParam("scale", description="Scale.")'
            ),
            lines=(BODY_LINE,),
            note="by the name of the flag",
        ),
        Example(
            source=blocks_example(
                "scale = block_state.guidance_scale\nuse = scale > 1.0\nu, c = components.transformer(use)\n"
                "block_state.out = u + scale * (c - u)",
                inputs='InputParam("guidance_scale", description="Strength.")',
            ),
            lines=(BODY_LINE + 1, BODY_LINE + 3),
            note="a comparison and the combination itself",
        ),
    )
    valid = (
        Example(
            source=blocks_example("needed = components.requires_unconditional_embeds\nlatents = a + mask * (b - a)"),
            note="asking the guider; blending with a mask",
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            for node, message, kind in manual_guidance(project, source, source.tree):
                yield from report(self, source, node, message, kind=kind)


def manual_guidance(project: Project, source: Source, root: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """Places of ``root`` that do guidance by hand: node, message, kind."""
    if "guidance" not in source.text and "cfg" not in source.text:
        return
    blocks = [info for info in project.classes.of(source) if info.is_block or info.is_pipeline]
    if not blocks and not source.family:
        return
    for function in source.functions:
        owner = _owner(project, source, function)
        if owner is not None and not owner.is_block and not owner.is_pipeline:
            continue
        if owner is None and not any(info.is_block for info in blocks):
            continue
        if _enclosing_function(source, function) is not None:
            continue
        if root is not source.tree and function is not root and root not in source.ancestors(function):
            continue
        yield from _in_function(source, function)


def _owner(project: Project, source: Source, function: ast.AST) -> ClassInfo | None:
    for ancestor in source.ancestors(function):
        if isinstance(ancestor, ast.ClassDef):
            return project.classes.info(source, ancestor)
    return None


def _enclosing_function(source: Source, node: ast.AST) -> ast.AST | None:
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, ast.FunctionDef | ast.AsyncFunctionDef):
            return ancestor
    return None


def _in_function(
    source: Source, function: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[ast.AST, str, str]]:
    typed = source.typed(function)
    scales = _scale_names([node for node in typed.get(ast.Assign, ()) if isinstance(node, ast.Assign)])
    for kind in (ast.Name, ast.Attribute, ast.Call):
        for node in typed.get(kind, ()):
            name = _assigned_flag(node)
            if name:
                yield source.statement(node), f"`{name}` decides on guidance, which is the guider's to decide", ""
    for node in (*typed.get(ast.Compare, ()), *typed.get(ast.IfExp, ())):
        if isinstance(node, ast.Compare) and _compares_scale(node, scales):
            statement = source.statement(node)
            if isinstance(statement, ast.If) and isinstance(statement.body[0], ast.Raise) and not statement.orelse:
                continue
            if not (isinstance(statement, ast.Assign) and any(_assigned_flag(target) for target in statement.targets)):
                yield node, "compares a scale of guidance with a constant", ""
        elif isinstance(node, ast.IfExp) and _switches(node, scales):
            yield node, "switches guidance off, which is the guider's to decide", ""
    for node in (*typed.get(ast.BinOp, ()), *typed.get(ast.Call, ())):
        scale = _combination(node, scales)
        if scale is not None:
            yield node, f"combines predictions with `{scale}`, which is the guider's work", "shape"


def _assigned_flag(node: ast.AST) -> str:
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return name if name in FLAGS else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
        written = literal(node.args[1]) if len(node.args) > 1 else None
        return written if written is not None and written in FLAGS else ""
    return ""


def _scale_names(nodes: list[ast.Assign]) -> set[str]:
    """Local names that hold a scale of guidance."""
    found: set[str] = set()
    assigned = [(target.id, node.value) for node in nodes for target in node.targets if isinstance(target, ast.Name)]
    for _ in range(3):
        for name, value in assigned:
            if name not in found and _is_scale(value, found):
                found.add(name)
    return found


def _is_scale(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is a scale of guidance, as it is or chosen or converted."""
    if isinstance(node, ast.Name):
        return node.id in names or (is_scale_name(node.id) and node.id.endswith("scale"))
    if isinstance(node, ast.Attribute):
        return is_scale_name(node.attr) and node.attr.endswith(("scale", "guidance", "rescale"))
    if isinstance(node, ast.Subscript):
        key = literal(node.slice)
        return (key is not None and is_scale_name(key)) or _is_scale(node.value, names)
    if isinstance(node, ast.IfExp):
        return _is_scale(node.body, names) or _is_scale(node.orelse, names)
    if isinstance(node, ast.BoolOp):
        return any(_is_scale(value, names) for value in node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "getattr" and len(node.args) > 1:
            key = literal(node.args[1])
            return key is not None and is_scale_name(key)
        return node.func.id in ("float", "max", "min", "abs") and any(_is_scale(value, names) for value in node.args)
    return False


def _compares_scale(node: ast.Compare, scales: set[str]) -> bool:
    sides = [node.left, *node.comparators]
    constant = any(isinstance(side, ast.Constant) and isinstance(side.value, int | float) for side in sides)
    return constant and any(_is_scale(side, scales) for side in sides)


def _switches(node: ast.IfExp, scales: set[str]) -> bool:
    """Whether a condition chooses between a scale of guidance and a fixed one; a default for ``None`` is none."""
    sides = (node.body, node.orelse)
    if not any(isinstance(side, ast.Constant) and isinstance(side.value, int | float) for side in sides):
        return False
    if not any(_is_scale(side, scales) for side in sides):
        return False
    return not any(_is_scale(inner, scales) for inner in ast.walk(node.test) if isinstance(inner, ast.expr))


def _combination(node: ast.AST, scales: set[str]) -> str | None:
    """The scale ``s`` of ``u + s * (c - u)``, in any order."""
    if isinstance(node, ast.Call):
        function = node.func
        if (
            isinstance(function, ast.Attribute)
            and function.attr == "lerp"
            and node.args
            and _is_scale(node.args[-1], scales)
        ):
            return ast.unparse(node.args[-1])
        return None
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return None
    for base, product in ((node.left, node.right), (node.right, node.left)):
        if not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
            continue
        for scale, difference in ((product.left, product.right), (product.right, product.left)):
            if not isinstance(difference, ast.BinOp) or not isinstance(difference.op, ast.Sub):
                continue
            if ast.dump(difference.right) == ast.dump(base) and _is_scale(scale, scales):
                return ast.unparse(scale)
    return None
