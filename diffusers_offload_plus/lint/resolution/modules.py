"""Modules of a run: the linted ones, and those of the diffusers source, which are parsed when first needed."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..reading.imports import Definition, ImportedName, bindings
from ..reading.location import shown
from ..reading.nodes import AnyFunction, Dotted, Function, literal, name_of
from ..reading.source import FRAMEWORK_PACKAGE, Problem, Source, decode, parse
from .neighbours import Neighbours

__all__ = ["FRAMEWORK_CLASSES", "Modules", "Symbol", "is_framework_name"]

# Names that only the framework of modular pipelines has.
FRAMEWORK_CLASSES = {
    "ModularPipelineBlocks", "SequentialPipelineBlocks", "LoopSequentialPipelineBlocks", "ConditionalPipelineBlocks",
    "AutoPipelineBlocks", "IterativePipelineBlocks", "ModularLoopPipelineBlocks", "ModularPipeline", "InputParam",
    "OutputParam", "ComponentSpec", "PipelineBlock", "ConfigSpec", "InsertableDict", "PipelineState", "BlockState",
}  # fmt: skip


def is_framework_name(dotted: str) -> bool:
    """Whether a name that could not be followed is one of the framework of modular pipelines."""
    return dotted.startswith(FRAMEWORK_PACKAGE + ".") or (dotted.count(".") == 1 and dotted.startswith("diffusers."))


@dataclasses.dataclass(frozen=True)
class Symbol:
    """The meaning of a name: a definition or an assigned expression in a known file, or only a dotted name.

    Attributes:
        dotted: canonical name where known, such as ``"torch.randn"``.
        source, node: the file and the definition; ``None`` for modules and for names defined outside of known files.
        module: the file of a module that lies beside those that are linted.
    """

    dotted: str
    source: Source | None = None
    node: Definition | ast.expr | None = None
    module: Source | None = None


class Modules:
    """Finds the module of a dotted name, and what a name in a module stands for."""

    def __init__(self, diffusers: Path | None, texts: Mapping[Path, str]) -> None:
        self.diffusers = diffusers
        self._texts = texts
        self._neighbours = Neighbours(texts)
        self._linted: dict[str, Source] = {}
        self._read: dict[str, Source | None] = {}
        self._bindings: dict[ast.AST, tuple[dict[str, list[object]], list[ImportedName]]] = {}
        self._scoped: dict[tuple[ast.AST, str], Symbol | None] = {}
        self._resolved: dict[tuple[Source, str], Symbol | None] = {}

    def add(self, source: Source) -> None:
        """Add a linted file."""
        self._neighbours.add(source)
        if source.module:
            self._linted.setdefault(source.module, source)

    def module(self, dotted: str) -> Source | None:
        """The module called ``dotted``, if it is linted or part of the diffusers source."""
        if dotted in self._linted:
            return self._linted[dotted]
        if dotted not in self._read:
            self._read[dotted] = self._load(dotted)
        return self._read[dotted]

    def _load(self, dotted: str) -> Source | None:
        parts = dotted.split(".")
        if self.diffusers is None or parts[0] != "diffusers" or not all(part.isidentifier() for part in parts):
            return None
        stem = self.diffusers.joinpath(*parts[1:])
        for path in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            try:
                text = self._texts[path] if path in self._texts else decode(path.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue
            tree = parse(text, str(path))
            if isinstance(tree, Problem):
                return None
            return Source(shown(path), dotted, text, tree, linted=False)
        return None

    def is_family(self, name: str) -> bool:
        """Whether ``modular_pipelines.<name>`` is a model family and no file of the framework."""
        framework = {"modular_pipeline", "modular_pipeline_utils", "components_manager", "mellon_node_utils"}
        if name in framework or name.endswith("node_utils"):
            return False
        dotted = f"{FRAMEWORK_PACKAGE}.{name}"
        if dotted in self._linted:
            return self._linted[dotted].package
        if any(module.startswith(dotted + ".") for module in self._linted):
            return True
        if self.diffusers is not None:
            folder = self.diffusers / "modular_pipelines"
            if (folder / f"{name}.py").is_file():
                return False
            if (folder / name).is_dir():
                return True
            return not (folder.is_dir() and self._defined_in_framework(name))
        return True

    def _defined_in_framework(self, name: str) -> bool:
        package = self.module(FRAMEWORK_PACKAGE)
        return package is not None and name in self.scope(package, package.tree)[0]

    def scope(
        self, source: Source, node: ast.Module | Definition
    ) -> tuple[dict[str, list[object]], list[ImportedName]]:
        """Names bound in the scope of ``node``, and its star imports."""
        if node not in self._bindings:
            self._bindings[node] = bindings(source, node.body)
        return self._bindings[node]

    def lookup(self, source: Source, name: str) -> Symbol | None:
        """The meaning of ``name`` at the top level of ``source``; ``None`` if nothing binds it."""
        key = (source, name)
        if key not in self._resolved:
            self._resolved[key] = None  # ends cycles
            self._resolved[key] = self._lookup(source, name)
        return self._resolved[key]

    def _lookup(self, source: Source, name: str) -> Symbol | None:
        names, stars = self.scope(source, source.tree)
        bound = names.get(name)
        if bound:
            return self._bound(source, name, bound, None)
        for star in stars:
            module = self.imported_module(star)
            found = self.lookup(module, name) if module is not None and module is not source else None
            if found is not None:
                return found
        submodule = f"{source.module}.{name}"
        if source.package and source.module and self.is_module(submodule):
            return Symbol(submodule)
        return None

    def _bound(self, source: Source, name: str, bound: list[object], scope: AnyFunction | None) -> Symbol | None:
        # An import or a definition wins over `X = None` beside it: that is how optional imports are written. Of
        # several imports one that leads somewhere wins: `try: from .base import X`, `except: from base import X`.
        first: Symbol | None = None
        for item in reversed(bound):
            if isinstance(item, Definition):
                if first is None or not is_framework_name(first.dotted):
                    return Symbol(f"{source.module}.{name}" if source.module else name, source, item)
            elif isinstance(item, ImportedName):
                found = self.imported(item)
                if found is not None and (found.node is not None or found.module is not None):
                    return found
                first = first or found
        if first is not None or any(isinstance(item, ImportedName) for item in bound):
            return first
        expressions = [item for item in bound if isinstance(item, ast.expr)]
        if len(expressions) != 1 or len(bound) != 1:
            return None
        value = expressions[0]
        if isinstance(value, ast.Call) and name_of(value.func) in ("import_module", "__import__") and value.args:
            module = literal(value.args[0])
            if module is not None and not module.startswith("."):
                return Symbol(module, module=None if module.startswith("diffusers") else self.found(source, 0, module))
        if isinstance(value, Dotted):
            aliased = self.symbol(source, value, scope, frozenset({name}))
            if aliased is not None:
                return aliased
        return Symbol(f"{source.module}.{name}" if source.module else name, source, value)

    def imported(self, imported: ImportedName) -> Symbol | None:
        """The meaning of an imported name, followed through the modules that pass it on."""
        module = self.imported_module(imported)
        if not imported.name:
            return Symbol(imported.module, module=module if not imported.module.startswith("diffusers") else None)
        if module is not None:
            found = self.lookup(module, imported.name)
            if found is not None:
                return found
        level, spelled = imported.level, ".".join(filter(None, (imported.spelled, imported.name)))
        submodule = self.found(imported.source, level, spelled)
        if submodule is not None and not submodule.module.startswith("diffusers."):
            return Symbol(submodule.module or submodule.stem, module=submodule)
        if imported.module and module is not None:
            return self._member(imported, imported.name)
        return self._only_framework(imported)

    def imported_module(self, imported: ImportedName) -> Source | None:
        """The module that a name is imported from, if its source is at hand."""
        return self.found(imported.source, imported.level, imported.spelled) or self._followed(imported.module)

    def found(self, source: Source, level: int, spelled: str) -> Source | None:
        """The file outside of diffusers that an import in ``source`` means: its dots, and what follows them."""
        if source.module.startswith("diffusers."):
            return None  # found by name, since its files need not lie where they seem to
        if level:
            return self._neighbours.relative(source, level, spelled)
        return self._neighbours.absolute(source, spelled)

    def _only_framework(self, imported: ImportedName) -> Symbol | None:
        """What is imported from a module that is not there: the framework's, if only that has such a name."""
        ours = imported.level or imported.module.startswith("diffusers.") or imported.name.endswith("PipelineBlocks")
        if ours and imported.name in FRAMEWORK_CLASSES:
            package = self.module(FRAMEWORK_PACKAGE)
            found = self.lookup(package, imported.name) if package is not None else None
            return found or Symbol(f"{FRAMEWORK_PACKAGE}.{imported.name}")
        return Symbol(".".join(filter(None, (imported.module or imported.spelled, imported.name))))

    def _followed(self, dotted: str) -> Source | None:
        # Other packages of diffusers are not read: they would only give a longer name for the same thing.
        if dotted in self._linted or dotted == "diffusers" or dotted.startswith(FRAMEWORK_PACKAGE):
            return self.module(dotted)
        return None

    def _member(self, module: Symbol | ImportedName, name: str, seen_from: Source | None = None) -> Symbol | None:
        """The meaning of ``name`` in a module."""
        if isinstance(module, Symbol):
            dotted = module.dotted
            source = module.module or self._followed(dotted)
            if source is None and seen_from is not None:
                source = self.found(seen_from, 0, dotted)
            submodule = self.found(seen_from, 0, f"{dotted}.{name}") if seen_from is not None else None
        else:
            dotted, source, submodule = module.module, self._followed(module.module), None
        found = self.lookup(source, name) if source is not None else None
        if found is not None:
            return found
        return Symbol(f"{dotted}.{name}" if dotted else name, module=submodule)

    def is_module(self, dotted: str) -> bool:
        if dotted in self._linted:
            return True
        parts = dotted.split(".")
        if self.diffusers is None or parts[0] != "diffusers":
            return False
        stem = self.diffusers.joinpath(*parts[1:])
        return stem.is_dir() or stem.with_name(stem.name + ".py").is_file()

    def symbol(
        self,
        source: Source,
        expression: ast.expr,
        scope: AnyFunction | None = None,
        seen: frozenset[str] = frozenset(),
    ) -> Symbol | None:
        """The meaning of a name or a dotted expression, seen from inside the function ``scope``."""
        attributes: list[str] = []
        while isinstance(expression, ast.Attribute):
            attributes.append(expression.attr)
            expression = expression.value
        if not isinstance(expression, ast.Name) or expression.id in seen:
            return None
        found = self._name(source, expression.id, scope)
        while found is not None and attributes:
            attribute = attributes.pop()
            if found.node is None:
                found = self._member(found, attribute, source)
            else:
                found = Symbol(f"{found.dotted}.{attribute}")
        return found

    def _name(self, source: Source, name: str, scope: ast.AST | None) -> Symbol | None:
        if scope is None:
            return self.lookup(source, name)
        key = (scope, name)
        if key not in self._scoped:
            self._scoped[key] = None  # ends cycles
            self._scoped[key] = self._name_in(source, name, scope)
        return self._scoped[key]

    def _name_in(self, source: Source, name: str, scope: ast.AST | None) -> Symbol | None:
        while scope is not None:
            if isinstance(scope, Function):
                bound = self.scope(source, scope)[0].get(name)
                if bound:
                    return self._bound(source, name, bound, scope)
            if isinstance(scope, AnyFunction) and name in parameters(scope):
                return None
            scope = source.function_of(scope)
        return self.lookup(source, name)


def parameters(function: AnyFunction) -> list[str]:
    """Names of all parameters, in order."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    names += [given.vararg.arg] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    return names + ([given.kwarg.arg] if given.kwarg else [])
