"""Fixes that add, remove or rename statements of a block's ``__call__``."""

from __future__ import annotations

import libcst as cst
import libcst.matchers as m

from ..core.finding import Finding
from .calls import argument, literal_text, without_argument
from .edits import CannotFix, Edits, below

__all__ = ["default_in_call", "offload_in_block", "state_protocol", "undeclared_write"]


def offload_in_block(edits: Edits, finding: Finding) -> None:
    """A call such as ``components.maybe_free_model_hooks()`` is removed."""
    line = edits.at(
        finding, cst.SimpleStatementLine, lambda node: m.matches(node, m.SimpleStatementLine([m.Expr(m.Call())]))
    )
    edits.refuse_comments(line)
    edits.change(line, lambda node: cst.RemoveFromParent())


def state_protocol(edits: Edits, finding: Finding) -> None:
    """``self.set_block_state(state, block_state)`` is put before a return that lacks it."""
    line = edits.at(
        finding, cst.SimpleStatementLine, lambda node: m.matches(node, m.SimpleStatementLine([m.Return()]))
    )
    function = edits.enclosing(line, cst.FunctionDef)
    reads = [
        statement
        for statement in below(function, cst.Assign)
        if m.matches(
            statement,
            m.Assign(
                targets=[m.AssignTarget(m.Name())],
                value=m.Call(m.Attribute(m.Name(), m.Name("get_block_state")), args=[m.Arg(m.Name())]),
            ),
        )
    ]
    if len(reads) != 1 or edits.start(reads[0]) > edits.start(line):
        raise CannotFix("it is not clear which block state is meant")
    if edits.enclosing(reads[0], cst.FunctionDef) is not function:
        raise CannotFix("the block state is read in another function")
    # The new statement uses the same names as the statement that reads the block state.
    value, target = reads[0].value, reads[0].targets[0].target
    assert isinstance(value, cst.Call)
    assert isinstance(value.func, cst.Attribute)
    shown = edits.module.code_for_node
    text = f"{shown(value.func.value)}.set_block_state({shown(value.args[0].value)}, {shown(target)})"

    def preceded(node: cst.SimpleStatementLine) -> cst.FlattenSentinel[cst.BaseStatement]:
        added = cst.parse_statement(text).with_changes(leading_lines=node.leading_lines)
        return cst.FlattenSentinel([added, node.with_changes(leading_lines=[])])

    edits.change(line, preceded)


def default_in_call(edits: Edits, finding: Finding) -> None:
    """``if block_state.x is None: block_state.x = C`` is removed, and the input gets ``default=C``."""
    branch = edits.at(finding, cst.If, _sets_default)
    name, constant = _default_of(branch)
    if branch.orelse is not None:
        raise CannotFix("there is an else")
    if isinstance(edits.parent(branch), cst.If):
        raise CannotFix("it is an elif")
    if not isinstance(constant, cst.SimpleString | cst.Integer | cst.Float | cst.UnaryOperation | cst.Name):
        raise CannotFix("the default is not a plain constant")
    owner = edits.enclosing(branch, cst.ClassDef)
    function = edits.enclosing(branch, cst.FunctionDef)
    if isinstance(constant, cst.Name) and constant.value not in ("True", "False") and not constant.value.isupper():
        raise CannotFix("the default is not a plain constant")
    for read in below(function, cst.Attribute):
        if read.attr.value == name and edits.start(read) < edits.start(branch):
            raise CannotFix(f"`{name}` is used before it gets its default")
    if edits.parent(branch) is not function.body:
        raise CannotFix("it is set only under a condition")
    declared = [call for call in below(owner, cst.Call) if _declares(call, name)]
    if len(declared) != 1:
        raise CannotFix(f"the class does not declare the input `{name}` itself, exactly once and with plain values")
    call = declared[0]
    given = argument(call, "default")
    if given is not None and not m.matches(given.value, m.Name("None")):
        raise CannotFix(f"`{name}` has another default")
    if argument(call, "required") is not None or any(arg.star for arg in call.args):
        raise CannotFix(f"`{name}` may be required")
    if len([arg for arg in call.args if arg.keyword is None]) > 2:
        raise CannotFix("its arguments are not given by name")
    edits.refuse_comments(branch)
    edits.change(branch, lambda node: cst.RemoveFromParent())
    edits.change(call, lambda node: _with_default(node, constant))


def _sets_default(branch: cst.If) -> bool:
    return m.matches(
        branch,
        m.If(
            test=m.Comparison(left=m.Attribute(m.Name()), comparisons=[m.ComparisonTarget(m.Is(), m.Name("None"))]),
            body=m.IndentedBlock([m.SimpleStatementLine([m.Assign([m.AssignTarget(m.Attribute(m.Name()))])])]),
        ),
    ) and _same(branch)


def _same(branch: cst.If) -> bool:
    tested, assigned = _attributes(branch)
    return tested.deep_equals(assigned)


def _attributes(branch: cst.If) -> tuple[cst.BaseExpression, cst.BaseExpression]:
    test, line = branch.test, branch.body.body[0]
    assert isinstance(test, cst.Comparison)
    assert isinstance(line, cst.SimpleStatementLine)
    assign = line.body[0]
    assert isinstance(assign, cst.Assign)
    return test.left, assign.targets[0].target


def _default_of(branch: cst.If) -> tuple[str, cst.BaseExpression]:
    attribute, line = _attributes(branch)[0], branch.body.body[0]
    assert isinstance(attribute, cst.Attribute)
    assert isinstance(line, cst.SimpleStatementLine)
    assign = line.body[0]
    assert isinstance(assign, cst.Assign)
    return attribute.attr.value, assign.value


def _declares(call: cst.Call, name: str) -> bool:
    function = call.func
    if isinstance(function, cst.Attribute) and function.attr.value == "template":
        function = function.value
    if not isinstance(function, cst.Name) or function.value != "InputParam" or not call.args:
        return False
    chosen = argument(call, "name") or call.args[0]
    return literal_text(chosen.value) == name


def _with_default(call: cst.Call, constant: cst.BaseExpression) -> cst.Call:
    bare = without_argument(call, "default")
    added = cst.Arg(
        constant,
        cst.Name("default"),
        equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
    )
    last = bare.args[-1]
    described = argument(bare, "description")
    if described is last and len(bare.args) > 1:  # the description reads best at the end
        return bare.with_changes(args=[*bare.args[:-1], added.with_changes(comma=bare.args[-2].comma), last])
    separator = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    if len(bare.args) > 1:
        separator = bare.args[-2].comma if isinstance(bare.args[-2].comma, cst.Comma) else separator
    return bare.with_changes(
        args=[*bare.args[:-1], last.with_changes(comma=separator), added.with_changes(comma=last.comma)]
    )


def undeclared_write(edits: Edits, finding: Finding) -> None:
    """A value that only lives within ``__call__`` becomes a local variable."""
    written = edits.at(finding, cst.Attribute, lambda node: _writes(edits, node, finding))
    assert isinstance(written.value, cst.Name)
    state, name = written.value.value, written.attr.value
    function = edits.enclosing(written, cst.FunctionDef)
    if function.name.value != "__call__":
        raise CannotFix("it is not written in __call__")
    uses = [node for node in below(function, cst.Attribute) if _is_use(node, state, name)]
    own = {id(node.attr) for node in uses}
    for word in below(function, cst.Name):
        if word.value == name and id(word) not in own and not _is_keyword(edits, word):
            raise CannotFix(f"`{name}` already has another meaning in __call__")
        if word.value == state and not _is_harmless(edits, word):
            raise CannotFix(f"`{state}` is passed on as a whole, so that other code may read `{name}`")
    for node in uses:
        if edits.enclosing(node, cst.FunctionDef) is not function:
            raise CannotFix("it is used in an inner function")
    first = edits.enclosing(min(uses, key=edits.start), cst.BaseSmallStatement)  # type: ignore[type-abstract]
    inside = set(below(first, cst.Attribute))
    if isinstance(first, cst.AugAssign) or any(use in inside and not _stored(edits, use) for use in uses):
        raise CannotFix(f"`{name}` is read before it is written")
    owner = edits.enclosing(function, cst.ClassDef)
    for other in below(owner, cst.Attribute):
        if other.attr.value == name and other not in uses and not m.matches(other.value, m.Name("self")):
            raise CannotFix(f"`{name}` is used elsewhere in the class")
    if any(literal_text(text) == name for text in below(owner, cst.SimpleString)):
        raise CannotFix(f"`{name}` is also used as a string")

    def local(node: cst.CSTNode) -> cst.CSTNode:
        return cst.Name(name, lpar=node.lpar, rpar=node.rpar) if isinstance(node, cst.Attribute) else node

    for node in uses:
        edits.change(node, local)


def _writes(edits: Edits, node: cst.Attribute, finding: Finding) -> bool:
    # A statement may write several names. The message of the finding tells which one is meant.
    named = f".{node.attr.value}`" in finding.message
    return named and isinstance(node.value, cst.Name) and _stored(edits, node)


def _is_use(node: cst.Attribute, state: str, name: str) -> bool:
    return node.attr.value == name and isinstance(node.value, cst.Name) and node.value.value == state


def _stored(edits: Edits, node: cst.Attribute) -> bool:
    parent = edits.parent(node)
    if isinstance(parent, cst.AssignTarget | cst.AnnAssign | cst.AugAssign):
        return parent.target is node
    return isinstance(parent, cst.Element | cst.For | cst.AsName)


def _is_keyword(edits: Edits, word: cst.Name) -> bool:
    """Whether ``word`` names no variable, as in ``f(name=...)`` and ``other.name``."""
    parent = edits.parent(word)
    if isinstance(parent, cst.Arg):
        return parent.keyword is word
    return isinstance(parent, cst.Attribute) and parent.attr is word


def _is_harmless(edits: Edits, word: cst.Name) -> bool:
    parent = edits.parent(word)
    if isinstance(parent, cst.Attribute | cst.AssignTarget | cst.Param):
        return True
    if isinstance(parent, cst.Arg):
        call = edits.parent(parent)
        return m.matches(call, m.Call(m.Attribute(attr=m.Name("set_block_state")))) if call is not None else False
    # For example `return components, block_state`: a loop block passes the state on to the blocks after it.
    return False
