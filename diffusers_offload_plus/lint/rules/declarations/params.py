"""Rules about declarations: fitting templates, descriptions, no contradictions, nothing that is unused."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.values import Constant, Instance, Spec
from ...project.blocks import Block
from ...project.body import STATE, Body
from ...project.flow import Flow
from ...project.project import Project, once
from ...reading.nodes import Dotted, Function, literal
from ...reading.source import Source
from ..base.declared import component_names, tagged_names, triggers
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import own_calls

__all__ = ["ParamDescription", "RequiredWithDefault", "TemplateSemantics", "UnusedIo", "spec_calls"]


@once
def spec_calls(project: Project, source: Source) -> list[Spec]:
    """All declarations written in a file that defines blocks, in order of place."""
    found: list[Spec] = []
    for node in source.nodes(ast.Call):
        function = node.func
        named = function.value if isinstance(function, ast.Attribute) and function.attr == "template" else function
        if not isinstance(named, Dotted):
            continue
        dotted = project.dotted(source, named) or ""
        if dotted.rpartition(".")[2] not in ("InputParam", "OutputParam") or not dotted.startswith("diffusers."):
            continue
        scope = source.function_of(node)
        function_scope = scope if isinstance(scope, Function) else None
        value = project.evaluator.expression(source, node, function_scope)
        if isinstance(value, Spec):
            found.append(value)
    return sorted(found, key=lambda spec: (spec.call.lineno, spec.call.col_offset))


def enclosing(source: Source, node: ast.AST) -> tuple[ast.ClassDef | None, Function | None]:
    """The class and the method that ``node`` is in."""
    function: Function | None = None
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, Function):
            function = ancestor
        elif isinstance(ancestor, ast.ClassDef):
            return ancestor, function
    return None, function


_BEFORE_FILES = {"before_denoise", "before_encoder", "encoders", "inputs"}
_AFTER_FILES = {"decoders", "after_decode", "after_denoise"}
_AFTER_NAME = re.compile(r"Unpack|AfterDenoise(?!r)|Decode|Postprocess|Stitch")
_BEFORE_NAME = re.compile(r"Prepare|AddNoise|NoiseGen|SetTimesteps|(?<!De)Noise(?!r|Pred)")


class TemplateSemantics(Rule):
    """A template is used for something else than its description says."""

    code = "MOD010"
    name = "template-semantics"
    level = Level.WARNING
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        reported: set[ast.Call] = set()
        for block in project.blocks:
            if block.kind != "leaf" and not block.info.loops:
                continue
            for what in ("inputs", "intermediate_outputs"):
                for spec in block.own(what):
                    if spec.template is None or "description" in spec.given or spec.call in reported:
                        continue
                    message = self._misused(project, block, spec)
                    if message:
                        reported.add(spec.call)
                        fixable = not spec.open and len(spec.call.args) == 1 and "note" not in spec.fields
                        yield from report(self, spec.source, spec.call, message, fixable=fixable)

    def _misused(self, project: Project, block: Block, spec: Spec) -> str:
        if spec.kind == "output" and spec.template == "latents" and self._before(project, block):
            return f'the output template "latents" means denoised latents, which {block.name} does not make'
        if spec.kind == "input" and spec.template == "latents" and self._after(project, block):
            return f'the input template "latents" means noise passed by users, but {block.name} runs after the loop'
        if spec.kind == "output" and spec.template == "image_latents" and re.search(r"(?<!De)Noise(?!r)", block.name):
            return f'the output template "image_latents" means the encoded image, to which {block.name} adds noise'
        return ""

    def _before(self, project: Project, block: Block) -> bool:
        order = _order(project, block)
        if order:
            return order == "before"
        if block.info.loops or _AFTER_NAME.search(block.name) or project.loops_of(block):
            return False
        return block.source.stem in _BEFORE_FILES or _BEFORE_NAME.search(block.name) is not None

    def _after(self, project: Project, block: Block) -> bool:
        order = _order(project, block)
        if order:
            return order == "after"
        if block.info.loops or project.loops_of(block):
            return False
        return block.source.stem in _AFTER_FILES or _AFTER_NAME.search(block.name) is not None


class ParamDescription(Rule):
    """An `InputParam` or `OutputParam` has no description."""

    code = "MOD024"
    name = "param-description"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            for spec in spec_calls(project, source):
                if spec.template is not None or spec.open or any(word.arg is None for word in spec.call.keywords):
                    continue
                text = spec.fields.get("description", Constant(""))
                if not isinstance(text, Constant) or not self._is_missing(text.value):
                    continue
                owner, function = enclosing(source, spec.call)
                if function is not None and function.name == "outputs" and owner is not None:
                    continue
                what = "InputParam" if spec.kind == "input" else "OutputParam"
                name = f"`{spec.name}`" if spec.name else "this one"
                yield from report(self, source, spec.call, f"{what} without a description: {name}")

    def _is_missing(self, text: object) -> bool:
        return not text or (isinstance(text, str) and (not text.strip() or re.match(r"\W*TODO\b", text) is not None))


class RequiredWithDefault(Rule):
    """An input is required and has a default at the same time."""

    code = "MOD038"
    name = "required-with-default"
    level = Level.WARNING
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            for spec in spec_calls(project, source):
                if spec.kind != "input" or spec.constant("required") is not True:
                    continue
                default = spec.fields.get("default")
                if default is None or (isinstance(default, Constant) and default.value is None):
                    continue
                if not isinstance(default, Constant) and "default" in spec.given:
                    continue
                message = f"`{spec.name}` is required but has a default, so that the requirement never fires"
                fixable = any(keyword.arg == "required" for keyword in spec.call.keywords)
                yield from report(self, source, spec.call, message, fixable=fixable)


def names_in_state(body: Body) -> set[str] | None:
    """The names that a function reads from the pipeline state itself; ``None`` if they cannot be known."""
    names: set[str] = set()
    for node in body.of(ast.Attribute):
        if STATE not in body.places(node.value) or isinstance(node.ctx, ast.Store):
            continue
        parent = body.source.parent(node)
        if node.attr in ("set", "kwargs_mapping"):
            continue
        if node.attr == "get" and isinstance(parent, ast.Call) and parent.func is node:
            read = _literals(parent)
        elif node.attr == "values" and isinstance(parent, ast.Subscript):
            read = None if literal(parent.slice) is None else {literal(parent.slice) or ""}
        elif node.attr == "values" and isinstance(parent, ast.Attribute) and parent.attr == "get":
            call = body.source.parent(parent)
            read = _literals(call) if isinstance(call, ast.Call) else None
        elif node.attr in ("get_by_kwargs", "to_dict", "get", "values", "__dict__"):
            read = None
        else:
            read = {node.attr}
        if read is None:
            return None
        names |= read
    return names


def _literals(call: ast.Call) -> set[str] | None:
    """The strings that the first argument of a call gives, by itself or in a list."""
    given = call.args[0] if call.args else next((word.value for word in call.keywords), None)
    listed = given.elts if isinstance(given, ast.List | ast.Tuple | ast.Set) else [given]
    found = [literal(one) for one in listed if one is not None]
    return {name for name in found if name is not None} if None not in found and found else None


class UnusedIo(Rule):
    """A block declares an input or a component that it never uses."""

    code = "MOD039"
    name = "unused-io"
    level = Level.INFO
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        reported: set[ast.Call] = set()
        for block in own_calls(project):
            if block.kind != "leaf" and not block.info.loops:
                continue
            flows = self._flows(project, block)
            for what, root in (("inputs", "block_state"), ("expected_components", "components")):
                if any(flow.escaped(root) or self._computed(flow, root) for flow in flows):
                    continue
                used = {access.name for flow in flows for access in flow.of(root)}
                others = self._in_state(flows) if what == "inputs" else self._behind_properties(project, block, used)
                if others is None:
                    continue
                used |= others
                for spec in block.own(what):
                    if spec.name is None or spec.name in used or spec.call in reported or spec.open:
                        continue
                    if what == "inputs" and self._serves_otherwise(project, block, spec):
                        continue
                    if not self._is_written_here(block, spec):
                        continue
                    reported.add(spec.call)
                    noun = "input" if what == "inputs" else "component"
                    yield from report(
                        self, spec.source, spec.call, f"{noun} `{spec.name}` is never used by {block.name}"
                    )

    def _serves_otherwise(self, project: Project, block: Block, spec: Spec) -> bool:
        """Whether an input triggers a selection, is only written, or comes with all others of its ``kwargs_type``."""
        group = block.source.group
        selecting = triggers(project, group)
        tagged = tagged_names(project, group)
        by_kind = any(spec.name in tagged.get(kind, ()) for kind in block.inputs.kwargs_types)
        return spec.name in selecting or spec.name in block.outputs.names or by_kind or "kwargs_type" in spec.given

    def _is_written_here(self, block: Block, spec: Spec) -> bool:
        return spec.source is block.source and block.source.is_inside(spec.call, block.info.node)

    def _flows(self, project: Project, block: Block) -> list[Flow]:
        """The flows of the block, of its subclasses, and for a loop of its steps."""
        infos = [block.info, *project.heirs.get(block.info, ())]
        if block.info.loops:
            infos += [instance.info for other in infos for _, instance in project.block(other).sub_blocks[0]]
        return [project.flow(info) for info in dict.fromkeys(infos)]

    def _in_state(self, flows: list[Flow]) -> set[str] | None:
        """The names that are read from the pipeline state itself; ``None`` if they cannot be known."""
        names: set[str] = set()
        for flow in flows:
            if flow.escaped("state"):
                return None
            for body in flow.bodies:
                found = names_in_state(body)
                if found is None:
                    return None
                names |= found
        return names

    def _behind_properties(self, project: Project, block: Block, used: set[str]) -> set[str] | None:
        """Components that the pipeline's own attributes may use; ``None`` if these cannot be known."""
        for name in used - component_names(project, block.source.group):
            if name in ("components", "get_component_spec", "update_components", "_component_specs"):
                return None
            reached = any(pipeline.find(name) for pipeline in project.pipelines_of(block.source))
            if not reached and not project.is_of_framework_pipeline(name):
                return None
        return set()

    def _computed(self, flow: Flow, root: str) -> bool:
        """Whether ``flow`` reads attributes of ``root`` by computed names."""
        return any((root,) in body.computed("getattr", "hasattr") for body in flow.bodies)


@once
def _order(project: Project, block: Block) -> str:
    """The place of a block in sequences with a loop: ``"before"`` or ``"after"`` the loop; ``""`` if unsure."""
    found: set[str] = set()
    for outer in project.assemblies.get(block.info, ()):
        if outer.kind != "sequential":
            continue
        blocks = [instance for _, instance in outer.sub_blocks[0]]
        loops = [index for index, instance in enumerate(blocks) if _denoises(project, instance)]
        for index, instance in enumerate(blocks):
            if block.info in instance.info.mro and loops and index not in loops:
                found.add("before" if index < loops[0] else "after" if index > loops[-1] else "between")
    return found.pop() if len(found) == 1 else ""


@once
def _denoises(project: Project, instance: Instance) -> bool:
    inner = [instance, *project.below(instance)]
    return any(item.info.loops for item in inner)
