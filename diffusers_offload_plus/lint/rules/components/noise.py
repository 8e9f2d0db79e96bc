"""Rule MOD017: noise comes from ``randn_tensor``, which draws it on the device of the generator."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Dotted, Listing
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions

__all__ = ["RawNoise"]

_FUNCTIONS = {"torch.randn": "", "torch.randn_like": "", "torch.normal": "", "torch.rand": "rand"}
_NAMES = {name.rpartition(".")[2] for name in _FUNCTIONS}


class RawNoise(Rule):
    """A block draws noise with `torch.randn` or a relative instead of `randn_tensor`."""

    code = "MOD017"
    name = "raw-noise"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"rand": Level.WARNING}
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for body in functions(project):
            for node in body.of(ast.Call):
                if not isinstance(node.func, Dotted):
                    continue
                if isinstance(node.func, ast.Attribute) and node.func.attr not in _NAMES:
                    continue
                dotted = project.dotted(body.source, node.func)
                if dotted not in _FUNCTIONS or self._is_fine(body, node):
                    continue
                message = (
                    f"`{ast.unparse(node.func)}` with a device of its own"
                    if _argument(node, "generator")
                    else (f"`{ast.unparse(node.func)}` without the generator")
                )
                fixable = dotted == "torch.randn" and _is_plain(node)
                yield from report(
                    self, body.source, node, f"{message}: use randn_tensor", kind=_FUNCTIONS[dotted], fixable=fixable
                )

    def _is_fine(self, body: Body, node: ast.Call) -> bool:
        if any(keyword.arg is None for keyword in node.keywords):
            return True
        generator, device = _argument(node, "generator"), _argument(node, "device")
        if generator is None or isinstance(generator, ast.Constant):
            return False
        if device is None:
            return True
        return _is_device_of(body, device, generator, 3)


def _argument(node: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)


def _is_device_of(body: Body, device: ast.expr, generator: ast.expr, hops: int) -> bool:
    """Whether ``device`` is the device of ``generator``, directly or under another name."""
    for inner in ast.walk(device):
        if isinstance(inner, ast.Attribute) and inner.attr == "device":
            text = ast.unparse(inner.value)
            if text == ast.unparse(generator) or "generator" in text or text in ("gen", "g", "rng"):
                return True
    if isinstance(device, ast.Name) and hops:
        for node in body.of(ast.Assign):
            bound = any(isinstance(target, ast.Name) and target.id == device.id for target in node.targets)
            if bound and _is_device_of(body, node.value, generator, hops - 1):
                return True
    return False


def _is_plain(node: ast.Call) -> bool:
    """Whether ``randn_tensor`` takes the arguments as they are: a shape, a generator, a device, a dtype."""
    names = {keyword.arg for keyword in node.keywords}
    if (
        len(node.args) != 1
        or not {"generator", "device"} <= names
        or names - {"generator", "device", "dtype", "layout"}
    ):
        return False
    shape = node.args[0]
    if isinstance(shape, ast.Attribute):
        return shape.attr == "shape"
    if isinstance(shape, ast.Name):
        return "shape" in shape.id
    return isinstance(shape, Listing)
