"""Rule MOD017: noise comes from ``randn_tensor``, which draws it on the device of the generator."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Dotted, Listing, method_called, name_of
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions

__all__ = ["RawNoise"]

_FUNCTIONS = {
    "torch.randn": "", "torch.randn_like": "", "torch.normal": "", "torch.rand": "rand", "torch.rand_like": "rand",
    "numpy.random.randn": "", "numpy.random.standard_normal": "", "numpy.random.normal": "",
    "numpy.random.rand": "rand", "numpy.random.uniform": "rand",
}  # fmt: skip
_NAMES = {name.rpartition(".")[2] for name in _FUNCTIONS}
# Methods that fill a tensor with noise.
_FILLING = {"normal_": "", "uniform_": "rand"}
_NEW = {
    "empty",
    "zeros",
    "ones",
    "full",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "new_empty",
    "new_zeros",
}


class RawNoise(Rule):
    """A block draws noise with `torch.randn`, `normal_` or a relative instead of `randn_tensor`."""

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
                dotted = self._drawing(project, body, node)
                if dotted is None or self._is_fine(body, node):
                    continue
                message = (
                    f"`{ast.unparse(node.func)}` with a device of its own"
                    if _argument(node, "generator")
                    else (f"`{ast.unparse(node.func)}` without the generator")
                )
                kind = _FUNCTIONS.get(dotted, _FILLING.get(dotted, ""))
                fixable = dotted == "torch.randn" and _is_plain(node)
                yield from report(self, body.source, node, f"{message}: use randn_tensor", kind=kind, fixable=fixable)

    def _drawing(self, project: Project, body: Body, node: ast.Call) -> str | None:
        """The function or the method that a call draws noise with."""
        method = method_called(node)
        if method in _FILLING:
            initial = (project.dotted(body.source, node.func) or "").startswith("torch.nn.init.")
            return None if initial else method
        if method and method not in _NAMES:
            return None
        dotted = project.dotted(body.source, node.func)
        return dotted if dotted in _FUNCTIONS else None

    def _is_fine(self, body: Body, node: ast.Call) -> bool:
        if any(keyword.arg is None for keyword in node.keywords):
            return True
        generator, device = _argument(node, "generator"), _argument(node, "device")
        if generator is None or isinstance(generator, ast.Constant):
            return False
        if method_called(node) in _FILLING:
            made = _made(body, node.func.value) if isinstance(node.func, ast.Attribute) else None
            device = _argument(made, "device") if made is not None else None
        if device is None:
            return True
        return _is_device_of(body, device, generator, 3)


def _made(body: Body, node: ast.expr) -> ast.Call | None:
    """The call that makes the tensor which ``node`` stands for."""
    if isinstance(node, ast.Name):
        values = _values(body, node.id)
        node = values[0] if len(values) == 1 else node
    return node if isinstance(node, ast.Call) and name_of(node.func) in _NEW else None


def _values(body: Body, name: str) -> list[ast.expr]:
    """What is assigned to a local name."""
    return [
        node.value
        for node in body.of(ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id == name
    ]


def _argument(node: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)


def _seeded(node: ast.expr) -> ast.expr | None:
    """The generator that ``node`` seeds and returns; None if it does not."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "manual_seed":
        return node.func.value
    return None


def _is_device_of(body: Body, device: ast.expr, generator: ast.expr, hops: int) -> bool:
    """Whether ``device`` is the device of ``generator``, directly or under another name."""
    drawn_from = _names_of(body, generator)
    for inner in ast.walk(device):
        if isinstance(inner, ast.Attribute) and inner.attr == "device":
            value = inner.value
            while isinstance(value, ast.Subscript):  # of a list of generators, which are all on one device
                value = value.value
            if _names_of(body, value) & drawn_from:
                return True
    if isinstance(generator, ast.Name):
        for made in _values(body, generator.id):
            while (
                isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute) and made.func.attr == "manual_seed"
            ):
                made = made.func.value
            if isinstance(made, ast.Call) and name_of(made.func) == "Generator":
                given = _argument(made, "device") or (made.args[0] if made.args else None)
                if given is not None and ast.dump(given) == ast.dump(device):
                    return True  # a generator that is made for this device
    if isinstance(device, ast.Name) and hops:
        return any(_is_device_of(body, value, generator, hops - 1) for value in _values(body, device.id))
    return False


def _names_of(body: Body, node: ast.expr) -> set[str]:
    """An expression and what its name is bound to, as text; the input it is, whatever it is called."""
    found = {ast.unparse(node)} | {".".join(place) for place in body.places(node)}
    if isinstance(node, ast.Name):
        found |= {ast.unparse(value) for value in _values(body, node.id)}
    return found


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
