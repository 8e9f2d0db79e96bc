"""Rule MOD048: a block that runs models says that it needs no gradients."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Function, name_of
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import call_bodies

__all__ = ["NoGrad"]

_WITHOUT = {"no_grad", "inference_mode"}
_MODEL = re.compile(
    r"^((un)?conditional_)?(transformer|unet|vae|audio_vae|controlnet|text_encoder|image_encoder|vocoder|prior|decoder)\w*$"
)
_RUNS = {"encode", "decode", "forward"}


class NoGrad(Rule):
    """A block runs a model in a `__call__` without `torch.no_grad()`."""

    code = "MOD048"
    name = "no-grad"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        for block, body in call_bodies(project):
            if block.info.is_assembled or any(_switches_off(item) for item in body.function.decorator_list):
                continue
            runs = [
                one for one in project.flow(block.info).bodies if not _is_covered(one.function) and _runs_model(one)
            ]
            if runs:
                message = f"{block.name} runs a model without `@torch.no_grad()`"
                yield from report(self, body.source, body.function, message)


def _switches_off(node: ast.expr) -> bool:
    return name_of(node.func if isinstance(node, ast.Call) else node) in _WITHOUT


def _is_covered(function: Function) -> bool:
    return any(_switches_off(item) for item in function.decorator_list)


def _runs_model(body: Body) -> bool:
    """Whether a function calls a model, outside of ``with torch.no_grad()``."""
    for node in body.of(ast.Call):
        for place in body.places(node.func):
            model = place[0] == "components" and len(place) > 1 and _MODEL.match(place[1]) is not None
            if not model or not (len(place) == 2 or (len(place) == 3 and place[2] in _RUNS)):
                continue
            around = [one for one in body.source.ancestors(node) if isinstance(one, ast.With)]
            if not any(_switches_off(item.context_expr) for one in around for item in one.items):
                return True
    return False
