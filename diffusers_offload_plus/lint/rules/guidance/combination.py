"""The shape of classifier-free guidance: two predictions of one model, mixed by a factor."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator

from ...project.project import Project, once
from ...reading.nodes import Dotted, Function, Listing, literal, method_called, name_of
from ...reading.source import Source

__all__ = ["Combination", "combinations", "of_predictions"]

_UNCONDITIONAL = re.compile(r"(^|_)(uncond\w*|neg|negative|null|empty)(_|\d|$)|uncond")
_CONDITIONAL = re.compile(r"(^|_)(cond\w*|pos|positive|text|prompt)(_|\d|$)")
_PREDICTION = re.compile(r"pred|noise|eps|velocity|(^|_)(v|out|output)(_|$)|score|model_out|logits|flow")
_OTHER = re.compile(r"embed|mask|image|pooled|hidden|video|audio_latents|pixel")
_MIXING = {"lerp", "lerp_", "add", "add_"}
_SPLITS = {"chunk", "split", "unbind", "tensor_split"}


@dataclasses.dataclass(frozen=True)
class Combination:
    """``base + scale * (one - other)``, in any spelling; ``scale`` may be a literal."""

    node: ast.expr | ast.AugAssign
    scale: ast.expr
    one: ast.expr
    other: ast.expr


@once
def combinations(project: Project, source: Source, function: Function) -> list[Combination]:
    """The places of a function that mix two values by a factor, whatever these are."""
    if not any(isinstance(node.op, ast.Mult) for node in source.within(function, ast.BinOp)):
        names = {method_called(node) for node in source.within(function, ast.Call)}
        if not names & _MIXING:
            return []
    local = _Local(source, function)
    found: list[Combination] = []
    seen: set[ast.AST] = set()
    for node in source.within(function, ast.BinOp, ast.AugAssign, ast.Call):
        one = local.mixed(node) if node not in seen else None
        if one is not None:
            seen.update(source.below(node))
            found.append(one)
    return found


def of_predictions(source: Source, function: Function, found: Combination) -> bool:
    """Whether what is mixed are the predictions of a model with and without its condition."""
    names = [_text(found.one), _text(found.other)]
    if any(_OTHER.search(name) for name in names):
        return False
    without = [name for name in names if _UNCONDITIONAL.search(name)]
    certain = any("uncond" in name for name in without)
    if certain or (without and any(_CONDITIONAL.search(name) or _PREDICTION.search(name) for name in names)):
        return True
    return _Local(source, function).are_halves(found.one, found.other)


def _text(node: ast.expr) -> str:
    """The words by which an expression is called."""
    if isinstance(node, ast.Subscript):
        return f"{_text(node.value)}_{literal(node.slice) or ''}".lower()
    if isinstance(node, ast.Call):
        inner = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        return _text(inner)
    return name_of(node).lower()


class _Local:
    """What the names of a function are bound to."""

    def __init__(self, source: Source, function: Function) -> None:
        bound: dict[str, list[ast.expr]] = {}
        self._parts: dict[str, ast.expr] = {}  # by the name of a part: what has been split
        for node in source.within(function, ast.Assign):
            for target in node.targets:
                if isinstance(target, Dotted):
                    bound.setdefault(ast.unparse(target), []).append(node.value)
                elif isinstance(target, Listing) and isinstance(node.value, Listing):
                    for one, value in zip(target.elts, node.value.elts, strict=False):
                        if isinstance(one, ast.Name):
                            bound.setdefault(one.id, []).append(value)
                elif isinstance(target, Listing) and isinstance(node.value, ast.Call):
                    self._parts |= {one.id: node.value for one in target.elts if isinstance(one, ast.Name)}
        for annotated in source.within(function, ast.AnnAssign):
            if isinstance(annotated.target, ast.Name) and annotated.value is not None:
                bound.setdefault(annotated.target.id, []).append(annotated.value)
        self._bound = bound

    def value(self, node: ast.expr) -> ast.expr:
        """What a name or an attribute has been bound to last, by the order of lines; anything else as it is."""
        found = self._bound.get(ast.unparse(node), []) if isinstance(node, Dotted) else []
        before = [value for value in found if (value.end_lineno or 0) < node.lineno]
        return before[-1] if before else node

    def mixed(self, node: ast.AST) -> Combination | None:
        """The combination that ``node`` is."""
        if isinstance(node, ast.AugAssign):
            if not isinstance(node.op, ast.Add | ast.Sub):
                return None
            bases: list[ast.expr] = [node.target]
            bases += self._bound.get(node.target.id, ()) if isinstance(node.target, ast.Name) else ()
            return next(filter(None, (self._added(node, base, node.value, node.op) for base in bases)), None)
        if isinstance(node, ast.Call):
            return self._called(node)
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add | ast.Sub):
            return None
        found = self._added(node, node.left, node.right, node.op)
        if found is None and isinstance(node.op, ast.Add):
            found = self._added(node, node.right, node.left, node.op)
        return found or self._weighted(node)

    def _added(
        self, node: ast.expr | ast.AugAssign, base: ast.expr, product: ast.expr, op: ast.operator
    ) -> Combination | None:
        """``base + scale * (one - other)`` where ``base`` is one of the two."""
        for scale, difference in _factors(self.value(product)):
            difference = self.value(difference)
            if not isinstance(difference, ast.BinOp) or not isinstance(difference.op, ast.Sub):
                continue
            one, other = difference.left, difference.right
            if _same(base, other) or _same(base, one) or _same(self.value(base), other):
                return Combination(node, scale, *((one, other) if isinstance(op, ast.Add) else (other, one)))
        return None

    def _weighted(self, node: ast.BinOp) -> Combination | None:
        """``scale * one + (1 - scale) * other``, and with the signs the other way round."""
        for scale, one in _factors(self.value(node.left)):
            for weight, other in _factors(self.value(node.right)):
                for first, second in ((scale, weight), (weight, scale)):
                    rest = self.value(second)
                    if isinstance(rest, ast.BinOp) and isinstance(rest.op, ast.Sub) and _is_one(rest, first):
                        return Combination(node, first, *((one, other) if first is scale else (other, one)))
        return None

    def _called(self, node: ast.Call) -> Combination | None:
        name = method_called(node)
        if name in ("lerp", "lerp_"):
            given = [*node.args, *(word.value for word in node.keywords)]
            if isinstance(node.func, ast.Attribute) and name_of(node.func.value) != "torch":
                given.insert(0, node.func.value)
            return Combination(node, given[2], given[1], given[0]) if len(given) == 3 else None
        alpha = next((word.value for word in node.keywords if word.arg == "alpha"), None)
        if name in ("add", "add_") and alpha is not None and node.args:
            difference = self.value(node.args[-1])
            if isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub):
                return Combination(node, alpha, difference.left, difference.right)
        return None

    def are_halves(self, one: ast.expr, other: ast.expr) -> bool:
        """Whether two values are the parts of what a model has returned, or of two calls of it."""
        first, second = self._origin(one), self._origin(other)
        if first is None or second is None or ast.dump(one) == ast.dump(other):
            return False
        return first == second

    def _origin(self, node: ast.expr) -> str | None:
        """The component whose prediction ``node`` is, or is a part of."""
        for _ in range(8):
            if isinstance(node, ast.Name):
                following = self._parts.get(node.id) or self.value(node)
                if following is node:
                    return None
                node = following
            elif isinstance(node, ast.Attribute) and (following := self.value(node)) is not node:
                node = following
            elif isinstance(node, ast.Subscript | ast.Attribute):
                node = node.value
            elif isinstance(node, ast.Call):
                if (component := _component(node.func)) is not None:
                    return component
                split = method_called(node)
                if not isinstance(node.func, ast.Attribute) or split not in {*_SPLITS, "float", "to", "clone"}:
                    return None
                of_torch = name_of(node.func.value) == "torch"
                node = node.args[0] if of_torch and node.args else node.func.value
            else:
                return None
        return None


def _component(function: ast.expr) -> str | None:
    """The model of ``components.model(...)`` that denoises."""
    name = name_of(function)
    return name if name.startswith(("unet", "transformer", "denoiser", "dit", "model", "prior")) else None


def _factors(node: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Both readings of a product: the factor, and what it multiplies."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield node.left, node.right
        yield node.right, node.left


def _same(one: ast.expr, other: ast.expr) -> bool:
    return _plain(one) == _plain(other)


def _plain(node: ast.expr) -> str:
    return ast.dump(node).replace("ctx=Store()", "ctx=Load()")


def _is_one(rest: ast.BinOp, factor: ast.expr) -> bool:
    """Whether ``rest`` is ``1 - factor`` or ``factor - 1``."""
    for one, other in ((rest.left, rest.right), (rest.right, rest.left)):
        if isinstance(one, ast.Constant) and one.value in (1, 1.0) and _same(other, factor):
            return True
    return False
