"""Rules about imports: none from standard pipelines, from other families or from other presets."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import ClassVar

from ...core.finding import Finding, Level
from ...project.project import Project, once
from ...reading.imports import absolute_module, in_type_checking
from ...reading.nodes import literal, name_of
from ...reading.source import FRAMEWORK_PACKAGE, Source
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule

__all__ = ["CrossFamilyImport", "PresetImport", "StandardPipelineImport"]

STANDARD = "diffusers.pipelines"
# Where the framework of modular pipelines was in its first versions.
_FRAMEWORK_ONCE = tuple(
    f"{STANDARD}.{name}" for name in ("modular_pipeline", "modular_pipeline_utils", "components_manager")
)


@dataclasses.dataclass(frozen=True)
class Imported:
    """One name that a statement imports: its canonical dotted name, and the dotted name as it is written."""

    dotted: str
    spelled: str
    name: str


@dataclasses.dataclass(frozen=True)
class ImportStatement:
    """An import statement, or a call of ``import_module``."""

    node: ast.stmt | ast.Call
    names: tuple[Imported, ...]


@once
def import_statements(project: Project, source: Source) -> list[ImportStatement]:
    """All imports of ``source``, wherever they are, in order of place."""
    found: list[ImportStatement] = []
    for node in source.nodes(ast.Import):
        names = tuple(Imported(alias.name, alias.name, "") for alias in node.names)
        found.append(ImportStatement(node, names))
    for statement in source.nodes(ast.ImportFrom):
        beside = project.modules.found(source, statement.level, statement.module or "") if statement.level else None
        module = absolute_module(source, statement) if beside is None else beside.module or beside.stem
        if module is None:
            continue
        names = tuple(_imported(project, module, alias.name) for alias in statement.names)
        found.append(ImportStatement(statement, names))
    by_name = "import_module" in source.text or "__import__" in source.text
    for call in source.nodes(ast.Call) if by_name else ():
        dotted = _imported_by_call(project, source, call)
        if dotted is not None:
            found.append(ImportStatement(call, (Imported(dotted, dotted, ""),)))
    return sorted(found, key=lambda statement: (statement.node.lineno, statement.node.col_offset))


def _imported(project: Project, module: str, name: str) -> Imported:
    spelled = f"{module}.{name}" if module else name
    dotted = spelled
    if module == "diffusers" or module == FRAMEWORK_PACKAGE:
        package = project.modules.module(module)
        symbol = project.modules.lookup(package, name) if package is not None else None
        if symbol is not None and symbol.dotted.startswith("diffusers."):
            dotted = symbol.dotted
    return Imported(dotted, spelled, name)


def _imported_by_call(project: Project, source: Source, call: ast.Call) -> str | None:
    """The module that ``importlib.import_module("...")`` or ``__import__("...")`` names."""
    if name_of(call.func) not in ("import_module", "__import__"):
        return None
    name = literal(call.args[0]) if call.args else None
    if name is None and call.args:
        value = project.evaluator.expression(source, call.args[0])
        name = getattr(value, "value", None)
    if not isinstance(name, str) or not name:
        return None
    if not name.startswith("."):
        return name
    anchor = literal(call.args[1]) if len(call.args) > 1 else None
    package = anchor or (source.module if source.package else source.module.rpartition(".")[0])
    dots = len(name) - len(name.lstrip("."))
    parts = package.split(".")
    base = parts[: len(parts) - (dots - 1)]
    return ".".join([*base, name.lstrip(".")]) if base else None


def is_below(dotted: str, package: str) -> bool:
    """Whether ``dotted`` is ``package`` or something in it."""
    return dotted == package or dotted.startswith(package + ".")


class StandardPipelineImport(Rule):
    """A modular block imports from the standard pipelines (`diffusers.pipelines`)."""

    code = "MOD001"
    name = "standard-pipeline-import"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {
        "component-class": Level.ERROR,
        "output-class": Level.ERROR,
        "type-checking": Level.ERROR,
    }

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            for statement in import_statements(project, source):
                names = [name for name in statement.names if self._is_standard(name)]
                if not names or self._is_mixin(project, source, statement, names):
                    continue
                what = ", ".join(sorted({name.spelled for name in names}))
                kind = self._kind(project, source, statement, names)
                yield from report(
                    self, source, statement.node, f"imports {what} from the standard pipelines", kind=kind
                )

    def _is_standard(self, name: Imported) -> bool:
        if any(is_below(name.spelled, framework) for framework in _FRAMEWORK_ONCE):
            return False
        if is_below(name.dotted, STANDARD) or is_below(name.spelled, STANDARD):
            return True
        top = name.spelled.startswith("diffusers.") and name.spelled.count(".") == 1
        return top and name.name.endswith("Pipeline") and not name.name.endswith("ModularPipeline")

    def _is_mixin(self, project: Project, source: Source, statement: ImportStatement, names: list[Imported]) -> bool:
        if source.stem != "modular_pipeline" or len(names) != len(statement.names):
            return False
        inherited = {
            base if isinstance(base, str) else base.dotted
            for info in project.classes.of(source)
            if info.is_pipeline
            for base in info.bases
        }
        return all(name.name.endswith("Mixin") and {name.dotted, name.spelled} & inherited for name in names)

    def _kind(self, project: Project, source: Source, statement: ImportStatement, names: list[Imported]) -> str:
        if in_type_checking(source, statement.node):
            return "type-checking"
        if all(name.name.endswith("Output") for name in names):
            return "output-class"
        return "component-class" if all(_is_component(project, name) for name in names) else ""


_COMPONENT_SUFFIXES = (
    "Processor",
    "Model",
    "Connectors",
    "Encoder",
    "Decoder",
    "Vocoder",
    "Upsampler",
    "Checker",
    "Head",
)
_NO_COMPONENT_SUFFIXES = ("Pipeline", "Condition", "Config", "Output", "Mixin")


def _is_component(project: Project, name: Imported) -> bool:
    """Whether a class that lives with a standard pipeline is one of its components."""
    if not name.name[:1].isupper() or name.name.isupper() or name.name.endswith(_NO_COMPONENT_SUFFIXES):
        return False
    if name.name.endswith(_COMPONENT_SUFFIXES):
        return True
    module = project.modules.module(name.dotted.rpartition(".")[0])
    symbol = project.modules.lookup(module, name.name) if module is not None else None
    if symbol is not None and isinstance(symbol.node, ast.ClassDef) and symbol.source is not None:
        info: ClassInfo = project.classes.info(symbol.source, symbol.node)
        bases = {entry if isinstance(entry, str) else entry.name for entry in info.lineage}
        short = {base.rpartition(".")[2] for base in bases}
        if "DiffusionPipeline" in short:
            return False
        if short & {"ModelMixin", "ConfigMixin", "SchedulerMixin", "Module", "PreTrainedModel"}:
            return True
    return False


class CrossFamilyImport(Rule):
    """A model family imports from the modular blocks of another family; custom blocks import from two families."""

    code = "MOD002"
    name = "cross-family-import"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"mixed": Level.INFO}

    def check(self, project: Project) -> Iterator[Finding]:
        built_on: dict[str, set[str]] = {}  # by directory, outside of diffusers
        for source in project.block_sources:
            for statement in import_statements(project, source):
                others = {family for name in statement.names if (family := self._family(project, source, name))}
                if not others:
                    continue
                what = ", ".join(sorted(others))
                if source.family:
                    message = f"imports from the modular pipelines of {what}"
                    yield from report(self, source, statement.node, message)
                    continue
                before = built_on.setdefault(source.group, set())
                if len(before | others) > 1 and others - before:
                    mixed = ", ".join(sorted(before | others))
                    message = f"these blocks build on several families: {mixed}"
                    yield from report(self, source, statement.node, message, kind="mixed")
                before |= others

    def _family(self, project: Project, source: Source, name: Imported) -> str:
        """The name of the other family that an imported name belongs to, else ``""``."""
        for dotted in (name.dotted, name.spelled):
            if dotted.startswith(FRAMEWORK_PACKAGE + "."):
                family = dotted.split(".")[2]
                own = source.family or PurePosixPath(source.path).parent.name  # a family may lie elsewhere
                known = family != "*" and not family[:1].isupper() and family != own
                there = source.family or project.modules.module(f"{FRAMEWORK_PACKAGE}.{family}") is not None
                if known and there and project.modules.is_family(family):
                    return family
        return ""


class PresetImport(Rule):
    """An assembly file `modular_blocks_*.py` imports from another assembly file."""

    code = "MOD025"
    name = "preset-import"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            if not source.stem.startswith("modular_blocks"):
                continue
            for statement in import_statements(project, source):
                presets = {
                    part
                    for name in statement.names
                    for part in name.spelled.split(".")
                    if part.startswith("modular_blocks") and part != source.stem
                }
                if presets:
                    message = f"a preset imports from another preset, {', '.join(sorted(presets))}"
                    yield from report(self, source, statement.node, message)
