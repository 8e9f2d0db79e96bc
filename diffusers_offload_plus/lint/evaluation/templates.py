"""The arguments and templates of ``InputParam`` and the like, read from the diffusers source in use."""

from __future__ import annotations

import ast
import functools

from ..reading.source import FRAMEWORK_PACKAGE, Source
from ..resolution.modules import Modules
from .values import Constant, External, Value

__all__ = ["SPEC_KINDS", "Declarations"]

SPEC_KINDS = {"InputParam": "input", "OutputParam": "output", "ComponentSpec": "component", "ConfigSpec": "config"}

# The order of positional arguments, for when the diffusers source cannot be read.
_FIELDS = {
    "InputParam": ("name", "type_hint", "default", "required", "description", "kwargs_type", "metadata"),
    "OutputParam": ("name", "type_hint", "description", "kwargs_type", "metadata"),
    "ComponentSpec": ("name", "type_hint", "description", "config", "pretrained_model_name_or_path", "subfolder"),
    "ConfigSpec": ("name", "default", "description"),
}
_TEMPLATES = {"InputParam": "INPUT_PARAM_TEMPLATES", "OutputParam": "OUTPUT_PARAM_TEMPLATES"}


class Declarations:
    """Field orders and templates of ``InputParam`` and the like."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    @functools.cached_property
    def _source(self) -> Source | None:
        return self._modules.module(f"{FRAMEWORK_PACKAGE}.modular_pipeline_utils")

    @functools.cached_property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """Names of the positional arguments by class name."""
        found = dict(_FIELDS)
        for node in self._source.tree.body if self._source else ():
            if isinstance(node, ast.ClassDef) and node.name in found:
                names = [
                    statement.target.id
                    for statement in node.body
                    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
                ]
                found[node.name] = tuple(names) or found[node.name]
        return found

    @functools.cached_property
    def templates(self) -> dict[str, dict[str, dict[str, Value]]]:
        """Fields of each template by class name; empty if the diffusers source is out of reach."""
        found: dict[str, dict[str, dict[str, Value]]] = {name: {} for name in _TEMPLATES}
        for node in self._source.tree.body if self._source else ():
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
                continue
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            for class_name, variable in _TEMPLATES.items():
                if variable in targets:
                    found[class_name] = _read(node.value)
        return found


def _read(node: ast.Dict) -> dict[str, dict[str, Value]]:
    found: dict[str, dict[str, Value]] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(value, ast.Dict):
            found[key.value] = {
                name.value: Constant(field.value) if isinstance(field, ast.Constant) else External(ast.unparse(field))
                for name, field in zip(value.keys, value.values, strict=True)
                if isinstance(name, ast.Constant) and isinstance(name.value, str)
            }
    return found
