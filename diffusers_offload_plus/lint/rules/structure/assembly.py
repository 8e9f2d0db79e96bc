"""How blocks are assembled: flat, consistent, named and documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...evaluation.values import ClassValue, Constant, External, Instance, Spec, Value, elements
from ...project.blocks import Block
from ...project.project import Project
from ...reading.source import Source
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Example, Rule

__all__ = ["AutoDocstring", "BlockLists", "BoolTrigger", "NestedAuto", "PlaceholderDocstring", "SharedDefault"]

_ASSEMBLY = "diffusers/modular_pipelines/toy/modular_blocks_toy.py"
_BLOCKS = """\
from ..modular_pipeline import AutoPipelineBlocks, ModularPipelineBlocks, SequentialPipelineBlocks
from ..modular_pipeline_utils import InputParam


class ToyStep(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def inputs(self):
        return [{inputs}]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        self.set_block_state(state, block_state)
        return components, state


"""
_FIRST = len(_BLOCKS.splitlines()) + 1


def is_none(value: Value) -> bool:
    return isinstance(value, Constant) and value.value is None


class NestedAuto(Rule):
    """An Auto or Conditional block has another one below it."""

    code = "MOD009"
    name = "nested-auto"
    level = Level.WARNING
    why = "Nobody can tell from the inputs which blocks ran, and workflows multiply."
    instead = "One selection at the top, each option a flat sequence of leaf blocks."
    allowed = (
        "Sequential > Auto > Sequential of leaves, the canonical shape.",
        "What is above the outermost selecting block: only that one is reported.",
        "Loops.",
    )
    gotcha = (
        "Prefer flat sequences to Auto blocks inside of sequences inside of Auto blocks. The selection is at the top, "
        "and each workflow is a flat `InsertableDict` of leaf blocks."
    )
    invalid = (
        Example(
            source=_BLOCKS.format(inputs="")
            + "class ToyInnerAuto(AutoPipelineBlocks):\n    block_classes = [ToyStep]\n"
            '    block_names = ["toy"]\n    block_trigger_inputs = ["mask"]\n\n\n'
            "class ToyGroup(SequentialPipelineBlocks):\n    block_classes = [ToyInnerAuto]\n"
            '    block_names = ["inner"]\n\n\n'
            "class ToyOuterAuto(AutoPipelineBlocks):\n    block_classes = [ToyGroup]\n"
            '    block_names = ["group"]\n    block_trigger_inputs = ["image"]\n',
            lines=(_FIRST + 11,),
        ),
    )
    valid = (
        Example(
            source=_BLOCKS.format(inputs="") + "class ToyAuto(AutoPipelineBlocks):\n    block_classes = [ToyStep]\n"
            '    block_names = ["toy"]\n    block_trigger_inputs = ["image"]\n\n\n'
            "class ToyBlocks(SequentialPipelineBlocks):\n    block_classes = [ToyAuto, ToyStep]\n"
            '    block_names = ["auto", "toy"]\n'
        ),
    )
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        nested: dict[ClassInfo, ClassInfo] = {}
        for block in project.blocks:
            if block.info.selects:
                inner = next((item.info for item in block.descendants if item.info.selects), None)
                if inner is not None:
                    nested[block.info] = inner
        below = {item.info for block in project.blocks if block.info in nested for item in block.descendants}
        for block in project.blocks:
            inner = nested.get(block.info)
            if inner is not None and block.info not in below:
                message = f"{block.name} selects among blocks that select again ({inner.name}): flatten"
                yield from report(self, block.source, block.info.node, message)


class AutoDocstring(Rule):
    """An assembled block of a `modular_blocks_*.py` file lacks `# auto_docstring` right above its `class` line."""

    code = "MOD022"
    name = "auto-docstring"
    level = Level.WARNING
    why = "The docstring, and with it the documentation page, is not generated."
    instead = "`# auto_docstring` on the line before `class`, and run the generator."
    allowed = ("Leaf blocks and loops.",)
    invalid = (
        Example(
            source="from ..modular_pipeline import SequentialPipelineBlocks\n\n\n"
            'class ToyBlocks(SequentialPipelineBlocks):\n    model_name = "toy"\n',
            path=_ASSEMBLY,
            lines=(4,),
        ),
    )
    valid = (
        Example(
            source="from ..modular_pipeline import SequentialPipelineBlocks\n\n\n"
            '# auto_docstring\nclass ToyBlocks(SequentialPipelineBlocks):\n    model_name = "toy"\n',
            path=_ASSEMBLY,
        ),
    )
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            node, lines = block.info.node, block.source.lines
            if not block.source.stem.startswith("modular_blocks") or not block.info.is_assembled:
                continue
            above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
            if re.fullmatch(r"#\s*auto_docstring\b.*", above) is None:
                message = f"{block.name} has no `# auto_docstring` right above its class line"
                yield from report(self, block.source, node, message, fixable=not node.decorator_list)


class PlaceholderDocstring(Rule):
    """Generated docstrings say "TODO: Add description."."""

    code = "MOD022b"
    name = "placeholder-docstring"
    level = Level.WARNING
    why = "The documentation pages print it."
    instead = "Describe the inputs and outputs where they are declared, and run the generator again."
    allowed = ("One finding for a file, at the first place.",)
    invalid = (
        Example(
            source="from ..modular_pipeline import SequentialPipelineBlocks\n\n\n# auto_docstring\n"
            "class ToyBlocks(SequentialPipelineBlocks):\n"
            '    """\n    Toy.\n\n      Inputs:\n'
            '          fps (`int`):\n              TODO: Add description.\n    """\n',
            path=_ASSEMBLY,
            lines=(11,),
        ),
    )
    valid = (
        Example(
            source="from ..modular_pipeline import SequentialPipelineBlocks\n\n\n# auto_docstring\n"
            "class ToyBlocks(SequentialPipelineBlocks):\n"
            '    """\n    Toy.\n    """\n\n    model_name = "toy"  # TODO: Add description.\n',
            path=_ASSEMBLY,
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            if "TODO: Add description." not in source.text:
                continue
            places = [
                line
                for node in source.nodes(ast.ClassDef)
                if node.body and _is_text(node.body[0])
                for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
                if "TODO: Add description." in source.lines[line - 1]
            ]
            if places:
                node = _LineNode(source, min(places))
                message = f'{len(places)} times "TODO: Add description." in docstrings of this file'
                yield from report(self, source, node, message)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


class _LineNode(ast.AST):
    """Stands for the text of one line."""

    def __init__(self, source: Source, line: int) -> None:
        super().__init__()
        text = source.lines[line - 1]
        self.lineno = self.end_lineno = line
        self.col_offset = len(text) - len(text.lstrip())
        self.end_col_offset = len(text.rstrip().encode())


class SharedDefault(Rule):
    """Blocks of one sequence declare different defaults for the same input."""

    code = "MOD033"
    name = "shared-default"
    level = Level.WARNING
    kinds: ClassVar[Mapping[str, Level]] = {"none-first": Level.INFO}
    why = "The first block's default silently wins for all of them."
    instead = "Declare the default on the first block only, or the same everywhere."
    allowed = (
        "A default first and None later.",
        "Equal defaults.",
        "Inputs that an earlier block of the sequence puts out.",
    )
    invalid = (
        Example(
            source=_BLOCKS.format(inputs='InputParam("fps", default=24, description="Speed.")')
            + _BLOCKS.format(inputs='InputParam("fps", default=25, description="Speed.")').replace("ToyStep", "ToyEnd")
            + "class ToyBlocks(SequentialPipelineBlocks):\n    block_classes = [ToyStep, ToyEnd]\n"
            '    block_names = ["start", "end"]\n',
            lines=(2 * _FIRST - 1,),
        ),
    )
    valid = (
        Example(
            source=_BLOCKS.format(inputs='InputParam("fps", default=24, description="Speed.")')
            + _BLOCKS.format(inputs='InputParam("fps", description="Speed.")').replace("ToyStep", "ToyEnd")
            + "class ToyBlocks(SequentialPipelineBlocks):\n    block_classes = [ToyStep, ToyEnd]\n"
            '    block_names = ["start", "end"]\n'
        ),
    )
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.kind != "sequential":
                continue
            first: dict[str, Spec] = {}
            produced: set[str] = set()
            reported: set[str] = set()
            for _, instance in block.sub_blocks[0]:
                specs, _ = elements(project.evaluator.attribute(instance, "inputs"))
                for spec in specs:
                    if not isinstance(spec, Spec) or spec.name is None or spec.name in produced | reported:
                        continue
                    before = first.setdefault(spec.name, spec)
                    kind = self._conflict(before, spec)
                    if kind is not None:
                        reported.add(spec.name)
                        one, other = before.constant("default"), spec.constant("default")
                        message = f"`{spec.name}` defaults to {one!r} first and to {other!r} in {instance.info.name}"
                        yield from report(self, block.source, block.info.node, message, kind=kind)
                if not instance.info.selects:
                    outputs, _ = elements(project.evaluator.attribute(instance, "intermediate_outputs"))
                    produced |= {output.name for output in outputs if isinstance(output, Spec) and output.name}

    def _conflict(self, before: Spec, spec: Spec) -> str | None:
        if before is spec or not before.known("default") or not spec.known("default"):
            return None
        one, other = before.constant("default"), spec.constant("default")
        if other is None or (type(one) is type(other) and one == other):
            return None
        if one is None:
            return None if before.constant("required") else "none-first"
        return "" if one != other else None


class BlockLists(Rule):
    """The lists of an assembled block do not match."""

    code = "MOD036"
    name = "block-lists"
    level = Level.ERROR
    why = "The constructor raises, or drops the blocks that have no name."
    instead = "As many `block_names` (and, for Auto blocks, `block_trigger_inputs`) as `block_classes`."
    allowed = ("Lists whose length cannot be known without running them.",)
    invalid = (
        Example(
            source=_BLOCKS.format(inputs="")
            + "class ToyBlocks(SequentialPipelineBlocks):\n    block_classes = [ToyStep, ToyStep]\n"
            '    block_names = ["one"]\n',
            lines=(_FIRST,),
        ),
    )
    valid = (
        Example(
            source=_BLOCKS.format(inputs="")
            + "class ToyBlocks(SequentialPipelineBlocks):\n    block_classes = [ToyStep, ToyStep]\n"
            '    block_names = ["one", "two"]\n'
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.kind == "leaf":
                continue
            problem = self._problem(block)
            if problem:
                yield from report(self, block.source, block.info.node, f"{block.name}: {problem}")

    def _problem(self, block: Block) -> str:
        lists = ["block_classes", "block_names"] + (["block_trigger_inputs"] if block.kind == "auto" else [])
        lengths: dict[str, int] = {}
        for name in lists:
            values, whole = elements(block.attribute(name))
            if not whole:
                return ""
            lengths[name] = len(values)
        if len(set(lengths.values())) > 1:
            return ", ".join(f"{count} {name}" for name, count in lengths.items())
        default = block.text("default_block_name") if block.info.selects else None
        names = {value.value for value in elements(block.attribute("block_names"))[0] if isinstance(value, Constant)}
        if default is not None and default not in names:
            return f"default_block_name {default!r} is none of block_names"
        if block.kind == "loop":
            for label, instance in block.sub_blocks[0]:
                if instance.info.kind not in ("leaf", "") and instance.info.find("block_classes"):
                    return f"{label} ({instance.info.name}) is no leaf block, and loops only take leaf blocks"
        return ""


class BoolTrigger(Rule):
    """An `AutoPipelineBlocks` is triggered by a flag."""

    code = "MOD040"
    name = "bool-trigger"
    level = Level.WARNING
    why = "Auto blocks ask whether the input is there, not whether it is true: `False` still runs the block."
    instead = "A `ConditionalPipelineBlocks` whose `select_block` tests the value."
    allowed = ("`ConditionalPipelineBlocks`.", "Triggers that are images, masks and the like.")
    invalid = (
        Example(
            source=_BLOCKS.format(
                inputs='InputParam("enhance", type_hint=bool, default=False, description="Whether.")'
            )
            + "class ToyAuto(AutoPipelineBlocks):\n    block_classes = [ToyStep]\n"
            '    block_names = ["enhance"]\n    block_trigger_inputs = ["enhance"]\n',
            lines=(_FIRST + 3,),
        ),
    )
    valid = (
        Example(
            source=_BLOCKS.format(inputs='InputParam.template("image")')
            + "class ToyAuto(AutoPipelineBlocks):\n    block_classes = [ToyStep]\n"
            '    block_names = ["image"]\n    block_trigger_inputs = ["image"]\n'
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.kind != "auto":
                continue
            found = block.info.find("block_trigger_inputs")
            if found is None or found[0] is not block.info:
                continue
            triggers, _ = elements(block.attribute("block_trigger_inputs"))
            for trigger in triggers:
                name = trigger.value if isinstance(trigger, Constant) else None
                if isinstance(name, str) and self._is_flag(project, block, name):
                    message = f"`{name}` is a flag, and `False` still runs the block"
                    yield from report(self, block.source, found[1], message)

    def _is_flag(self, project: Project, block: Block, name: str) -> bool:
        near = [spec for item in block.descendants for spec in _inputs(project, item) if spec.name == name]
        if not near:
            family = (other for other in project.leaves if other.source.group == block.source.group)
            near = [spec for other in family for spec in other.inputs.named(name)]
        typed = [spec for spec in near if "type_hint" in spec.fields or isinstance(spec.constant("default"), bool)]
        if typed:
            return any(_is_bool(spec) for spec in typed)
        return name.startswith(("use_", "enable_", "do_"))


def _inputs(project: Project, instance: Instance) -> list[Spec]:
    values, _ = elements(project.evaluator.attribute(instance, "inputs"))
    return [value for value in values if isinstance(value, Spec)]


def _is_bool(spec: Spec) -> bool:
    hint = spec.fields.get("type_hint")
    named = (isinstance(hint, External) and hint.dotted == "bool") or (
        isinstance(hint, ClassValue) and hint.info.name == "bool"
    )
    written = next((word.value for word in spec.call.keywords if word.arg == "type_hint"), None)
    if written is None and spec.template is None and len(spec.call.args) > 1:
        written = spec.call.args[1]
    return (
        named or (isinstance(written, ast.Name) and written.id == "bool") or isinstance(spec.constant("default"), bool)
    )
