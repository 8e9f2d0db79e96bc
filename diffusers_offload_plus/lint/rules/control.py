"""How a block's ``__call__`` begins and ends: skips, returns, branches on variants and on output formats."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ..finding import Finding, Level
from ..project import Block, Project
from ..project.classes import Function
from ..project.flow import Body, literal, takes_block_state
from ..project.modules import parameters
from ..rule import Example, Rule
from .report import BODY_LINE, blocks_example, report
from .scope import own_calls, scopes
from .state import in_loop

__all__ = ["LatentOutputBranch", "NoopSkip", "StateProtocol", "VariantConfigFlag"]


def call_bodies(project: Project) -> Iterator[tuple[Block, Body]]:
    """``__call__`` of the blocks that define it themselves."""
    for block in own_calls(project):
        method = block.info.method("__call__")
        if method is None or method[0] is not block.info:
            continue
        for body in project.flow(block.info).bodies:
            if body.function is method[1]:
                yield block, body
                break


def is_presence_test(body: Body, node: ast.expr, inputs: frozenset[str]) -> bool:
    """Whether a condition only asks whether inputs are there, or are true."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return is_presence_test(body, node.operand, inputs)
    if isinstance(node, ast.BoolOp):
        return all(is_presence_test(body, value, inputs) for value in node.values)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = node.comparators[0]
        if isinstance(node.ops[0], ast.Is | ast.IsNot | ast.Eq | ast.NotEq) and isinstance(other, ast.Constant):
            fixed = other.value is None or isinstance(other.value, bool)
            return fixed and is_presence_test(body, node.left, inputs)
        return False
    if isinstance(node, ast.Name | ast.Attribute | ast.Call):
        return any(place[0] == "block_state" and len(place) == 2 and place[1] in inputs for place in body.places(node))
    return False


class NoopSkip(Rule):
    """MOD015."""

    code = "MOD015"
    name = "noop-skip"
    level = Level.WARNING
    summary = "A leaf block does nothing unless an input is given."
    why = "The block shows up in every workflow, with its components and inputs, also in those where it does nothing."
    instead = "Select the block with an `AutoPipelineBlocks` whose trigger is that input."
    allowed = (
        "Branches on the output format that write the output either way.",
        "Guards that raise.",
        "Keeping what the user passed: `if latents is None: latents = ...`.",
        "Steps of a loop, which cannot be selected.",
    )
    invalid = (
        Example(
            source=blocks_example(
                "if block_state.image is None:\n    return components, state\n"
                "block_state.resized = components.image_processor.resize(block_state.image)",
                inputs='InputParam("image", description="Image.")',
                outputs='OutputParam("resized", description="Resized image.")',
            ),
            lines=(BODY_LINE + 1,),
        ),
        Example(
            source=blocks_example(
                "if block_state.use_enhancer:\n    block_state.prompt = components.enhancer(block_state.prompt)",
                inputs='InputParam.template("prompt"), InputParam("use_enhancer", description="Whether.")',
            ),
            lines=(BODY_LINE,),
            note="everything under one condition",
        ),
    )
    valid = (
        Example(
            source=blocks_example(
                "if block_state.latents is None:\n    block_state.latents = torch.zeros(1)",
                inputs='InputParam.template("latents")',
            ),
            note="keeping the user's value",
        ),
        Example(
            source=blocks_example(
                'if block_state.image is None:\n    raise ValueError("image is needed")\nblock_state.image = 1',
                inputs='InputParam("image", description="Image.")',
            ),
            note="a guard that raises",
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for block, body in call_bodies(project):
            if block.kind != "leaf" or in_loop(project, block):
                continue
            inputs = block.inputs.names
            for node in self._early_returns(body, inputs):
                gate = self._gate(project, block)
                yield from report(self, body.source, node, f"{block.name} returns early without an input{gate}")
            whole = self._whole_body(body, inputs)
            if whole is not None:
                gate = self._gate(project, block)
                yield from report(self, body.source, whole, f"{block.name} does nothing without an input{gate}")

    def _early_returns(self, body: Body, inputs: frozenset[str]) -> Iterator[ast.Return]:
        for index, statement in enumerate(body.function.body[:-1]):
            if isinstance(statement, ast.If) and is_presence_test(body, statement.test, inputs):
                last = statement.body[-1]
                idle = all(_is_idle(item) for item in statement.body[:-1])
                before = all(_is_preparation(item) for item in body.function.body[:index])
                if isinstance(last, ast.Return) and idle and before:
                    yield last

    def _whole_body(self, body: Body, inputs: frozenset[str]) -> ast.If | None:
        work = [
            statement
            for statement in body.function.body
            if not _is_preparation(statement) and not _is_idle(statement) and not isinstance(statement, ast.Return)
        ]
        if len(work) != 1 or not isinstance(work[0], ast.If) or work[0].orelse:
            return None
        condition = work[0]
        if not is_presence_test(body, condition.test, inputs) or isinstance(
            condition.body[-1], ast.Raise | ast.Return
        ):
            return None
        asked = {
            place for node in ast.walk(condition.test) if isinstance(node, ast.expr) for place in body.places(node)
        }
        for node in [inner for statement in condition.body for inner in ast.walk(statement)]:
            stored = isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store)
            if stored and asked & body.places(node) and _asks_for_none(condition.test):  # type: ignore[arg-type]
                return None
        return condition

    def _gate(self, project: Project, block: Block) -> str:
        for outer in project.assemblies.get(block.info, ()):
            if outer.info.selects:
                return f"; {outer.name} already selects it"
        return "; select it with an AutoPipelineBlocks"


def _asks_for_none(test: ast.expr) -> bool:
    return (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Is)) or isinstance(test, ast.UnaryOp)


def _is_idle(statement: ast.stmt) -> bool:
    """A statement that does no work: saving the state, logging, setting something to a fixed value."""
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Expr):
        call = statement.value
        if isinstance(call, ast.Constant):
            return True
        name = call.func.attr if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else ""
        return name in ("set_block_state", "info", "warning", "debug", "warning_once")
    if isinstance(statement, ast.Assign):
        value = statement.value
        return isinstance(value, ast.Constant) or (
            isinstance(value, ast.List | ast.Tuple | ast.Dict) and not ast.unparse(value).strip("[](){}")
        )
    return False


def _is_preparation(statement: ast.stmt) -> bool:
    """A statement that only gives names to what is there."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if not isinstance(statement, ast.Assign) or not all(isinstance(target, ast.Name) for target in statement.targets):
        return False
    value = statement.value
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Attribute) and value.func.attr == "get_block_state"
    return isinstance(value, ast.Name | ast.Attribute | ast.Constant)


class VariantConfigFlag(Rule):
    """MOD016."""

    code = "MOD016"
    name = "variant-config-flag"
    level = Level.WARNING
    summary = "A block or a pipeline branches on a configuration flag that tells variants of the model apart."
    why = (
        "Both variants then share inputs that only one of them uses: a distilled checkpoint still accepts a negative "
        "prompt."
    )
    instead = "Blocks and a preset of their own for each variant; the flag only says which preset a checkpoint is for."
    allowed = (
        "Numbers and names in the configuration.",
        "Configurations of components, such as `components.scheduler.config`.",
        "Declaring a `ConfigSpec`, which routes checkpoints to presets.",
    )
    invalid = (
        Example(
            source=blocks_example("steps = 4 if components.config.is_distilled else 50"),
            lines=(BODY_LINE,),
        ),
    )
    valid = (
        Example(
            source=blocks_example(
                "boundary = components.config.boundary_ratio * 1000\n"
                "if components.scheduler.config.use_flow_sigmas:\n    pass"
            ),
        ),
    )
    _flag = re.compile(r"^(is|use|requires|has|enable)_")

    def check(self, project: Project) -> Iterator[Finding]:
        for scope in scopes(project):
            flags = project.cached(("flags", scope.source.group), self._flags, project, scope.source.group)
            seen: set[ast.AST] = set()
            for node in scope.body.of(ast.If, ast.IfExp, ast.While, ast.Assert, ast.comprehension):
                if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
                    tests = [node.test]
                elif isinstance(node, ast.comprehension):
                    tests = node.ifs
                else:
                    continue
                for test in tests:
                    flag = self._tested(scope.body, test, flags)
                    if flag and test not in seen:
                        seen.add(test)
                        message = f"branches on `config.{flag}`, which tells variants apart"
                        yield from report(self, scope.source, test, message)

    def _tested(self, body: Body, test: ast.expr, flags: set[str]) -> str:
        if isinstance(test, ast.BoolOp):
            return next((flag for value in test.values if (flag := self._tested(body, value, flags))), "")
        if isinstance(test, ast.UnaryOp):
            return self._tested(body, test.operand, flags)
        if isinstance(test, ast.Compare):
            fixed = any(isinstance(side, ast.Constant) and isinstance(side.value, bool) for side in test.comparators)
            return self._tested(body, test.left, flags) if fixed else ""
        places = body.places(test)
        if (
            isinstance(test, ast.Call)
            and isinstance(test.func, ast.Attribute)
            and test.func.attr == "get"
            and test.args
        ):
            key = literal(test.args[0])
            places = {(*place, key) for place in body.places(test.func.value)} if key else set()
        for place in sorted(places):
            if place[:2] != ("components", "config") or len(place) != 3:
                continue
            if place[2] in flags or self._flag.match(place[2]):
                return place[2]
        return ""

    def _flags(self, project: Project, group: str) -> set[str]:
        """Boolean configurations that the family declares."""
        return {
            spec.name
            for block in project.blocks
            if block.source.group == group
            for spec in block.configs.specs
            if spec.name is not None and isinstance(spec.constant("default"), bool)
        }


class StateProtocol(Rule):
    """MOD020."""

    code = "MOD020"
    name = "state-protocol"
    level = Level.ERROR
    summary = "A block returns without saving its block state, or returns something else than components and state."
    why = "Without `set_block_state` later blocks see no outputs; any other return value raises TypeError."
    instead = "`self.set_block_state(state, block_state)` and `return components, state` on every path."
    allowed = (
        "Returns of functions defined inside `__call__`.",
        "Delegating, as `return super().__call__(components, state)` does.",
        "Sequential blocks that override `__call__`.",
        "Paths that raise.",
    )
    invalid = (
        Example(
            source=blocks_example(
                "if block_state.image is None:\n    return components, state\nblock_state.image = 1\n"
                "self.set_block_state(state, block_state)\nreturn state",
                inputs='InputParam("image", description="Image.")',
                end=False,
            ),
            lines=(BODY_LINE + 1, BODY_LINE + 4),
        ),
    )
    valid = (
        Example(
            source=blocks_example(
                "def clean(text):\n    return text.strip()\n\nblock_state.prompt = clean(block_state.prompt)",
                inputs='InputParam.template("prompt")',
            ),
            note="a return of an inner function",
        ),
    )
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for block, body in call_bodies(project):
            if block.info.is_assembled or len(body.function.args.args) < 3:
                continue
            step = block.kind == "leaf" and takes_block_state(body.function)
            paths = _Paths(project, block, body)
            paths.run(body.function.body, frozenset({False}))
            needs = not step and (paths.gets_state or bool(block.outputs.specs))
            for node, saved in paths.returns:
                problem = _wrong_return(node, body.function)
                if problem:
                    yield from report(self, body.source, node, f"{block.name} returns {problem}")
                elif needs and not saved and not isinstance(node.value, ast.Call):
                    message = f"{block.name} returns without `self.set_block_state(state, block_state)`"
                    fixable = node is body.function.body[-1] and _keeps_block_state(body)
                    yield from report(self, body.source, node, message, fixable=fixable)
            if paths.falls_through:
                yield from report(self, body.source, body.function, f"{block.name}.__call__ can end without a return")


def _keeps_block_state(body: Body) -> bool:
    """Whether the block state is in a variable called ``block_state`` by the end."""
    return any(
        isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Attribute)
        and statement.value.func.attr == "get_block_state"
        for statement in body.function.body
    )


def _wrong_return(node: ast.Return, function: Function) -> str:
    """What is wrong with the value of a return statement, ``""`` if nothing is known to be."""
    names = parameters(function)
    components, state = names[1], names[2]
    value = node.value
    if value is None or isinstance(value, ast.Constant):
        return "nothing instead of components and state"
    if isinstance(value, ast.Name) and value.id in (components, state):
        return f"`{value.id}` alone"
    if isinstance(value, ast.Tuple):
        if len(value.elts) != 2:
            return f"{len(value.elts)} values instead of components and state"
        first, second = value.elts
        if isinstance(first, ast.Name) and first.id in (state, "block_state", "state"):
            return f"`{first.id}` first instead of components"
        if isinstance(second, ast.Name) and second.id == components:
            return f"`{second.id}` second instead of the state"
        if isinstance(second, ast.Name) and second.id == "block_state" and state != "block_state":
            return "the block state instead of the state"
    return ""


class _Paths:
    """Follows the ways through a function, knowing on each whether the state has been saved."""

    def __init__(self, project: Project, block: Block, body: Body) -> None:
        self._saving = self._saving_methods(project, block)
        self._source = body.source
        self._saves = [node for node in body.calls() if _calls(node, self._saving)]
        self.returns: list[tuple[ast.Return, bool]] = []
        self.gets_state = any(_calls(node, {"get_block_state"}) for node in body.calls())
        self.falls_through = False
        self._top = body.function.body

    def _saving_methods(self, project: Project, block: Block) -> set[str]:
        """Methods of the block that save the state."""
        names = {"set_block_state"}
        for info in block.info.mro:
            if info.source.in_framework:
                break
            for name, member in info.members.items():
                if not isinstance(member, ast.FunctionDef) or name == "__call__":
                    continue
                if any(_calls(node, {"set_block_state"}) for node in info.source.typed(member)[ast.Call]):
                    names.add(name)
        return names

    def run(self, statements: list[ast.stmt], saved: frozenset[bool]) -> frozenset[bool]:
        """Whether the state may be (un)saved after ``statements``; empty if they never end."""
        top = statements is self._top
        for statement in statements:
            saved = self._statement(statement, saved)
            if not saved:
                return saved
        self.falls_through = self.falls_through or (top and bool(saved))
        return saved

    def _statement(self, node: ast.stmt, saved: frozenset[bool]) -> frozenset[bool]:
        nothing: frozenset[bool] = frozenset()
        if isinstance(node, ast.Return):
            done = self._saves_in(node)
            self.returns.append((node, done or saved == frozenset({True})))
            return nothing
        if isinstance(node, ast.Raise | ast.Continue | ast.Break):
            return nothing if isinstance(node, ast.Raise) else saved
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return saved
        if isinstance(node, ast.If):
            return self.run(node.body, saved) | self.run(node.orelse, saved)
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            return saved | self.run(node.body, saved) | self.run(node.orelse, saved)
        if isinstance(node, ast.With | ast.AsyncWith):
            return self.run(node.body, saved)
        if isinstance(node, ast.Try | ast.TryStar):
            after = self.run([*node.body, *node.orelse], saved)
            for handler in node.handlers:
                after |= self.run(handler.body, saved)
            if not node.finalbody:
                return after
            ended = self.run(node.finalbody, after or saved)
            return ended if after else nothing
        if isinstance(node, ast.Match):
            after = saved
            for case in node.cases:
                after |= self.run(case.body, saved)
            return after
        return frozenset({True}) if self._saves_in(node) else saved

    def _saves_in(self, node: ast.AST) -> bool:
        return any(self._source.is_inside(call, node) for call in self._saves)


def _calls(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names


class LatentOutputBranch(Rule):
    """MOD037."""

    code = "MOD037"
    name = "latent-output-branch"
    level = Level.INFO
    summary = 'A decoder branches on `output_type == "latent"`.'
    why = "Users who want latents leave the decoder out; the branch keeps the VAE in a pipeline that does not use it."
    instead = "Delete the branch."
    allowed = ("The formats `pil`, `np` and `pt`.",)
    invalid = (
        Example(
            source=blocks_example(
                'if block_state.output_type == "latent":\n    block_state.images = block_state.latents\n'
                "else:\n    block_state.images = components.vae.decode(block_state.latents)",
                inputs='InputParam.template("output_type"), InputParam("latents", description="Latents.")',
                outputs='OutputParam.template("images")',
            ),
            path="diffusers/modular_pipelines/toy/decoders.py",
            lines=(BODY_LINE,),
        ),
    )
    valid = (
        Example(
            source=blocks_example(
                'if block_state.output_type == "pt":\n    block_state.images = block_state.latents',
                inputs='InputParam.template("output_type"), InputParam("latents", description="Latents.")',
                outputs='OutputParam.template("images")',
            ),
            path="diffusers/modular_pipelines/toy/decoders.py",
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for scope in scopes(project):
            for node in scope.body.of(ast.Compare):
                if not isinstance(node, ast.Compare) or len(node.ops) != 1:
                    continue
                sides = [node.left, node.comparators[0]]
                latent = any(literal(side) == "latent" for side in sides)
                if latent and any(self._is_output_type(scope.body, side) for side in sides):
                    yield from report(self, scope.source, node, 'branches on `output_type == "latent"`')

    def _is_output_type(self, body: Body, node: ast.expr) -> bool:
        if ("block_state", "output_type") in body.places(node):
            return True
        return isinstance(node, ast.Name) and node.id == "output_type"
