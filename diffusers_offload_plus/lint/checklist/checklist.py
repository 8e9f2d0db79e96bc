"""The conversion checklist: how far a model family is on its way from a standard pipeline to a modular one."""

from __future__ import annotations

import ast
import dataclasses
import enum
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..analysis.analyse import Analysis, analyse
from ..core.errors import LintError
from ..core.finding import Finding
from ..core.text import printable
from ..project.blocks import Block
from ..project.project import Project
from ..rules.registry import catalogue

__all__ = ["Item", "State", "checklist", "render_checklist"]

FILES = ("__init__.py", "modular_pipeline.py", "encoders.py", "before_denoise.py", "denoise.py", "decoders.py")
_RULES = ("MOD005", "MOD022", "MOD022b", "MOD032")


class State(enum.StrEnum):
    """What the tool can say about an item."""

    DONE = "done"
    MISSING = "missing"
    UNDECIDABLE = "by hand"


@dataclasses.dataclass(frozen=True)
class Item:
    """A step of the conversion.

    Attributes:
        places: where it was found done, or where something is missing.
        note: what is missing, or what a person has to look at.
    """

    title: str
    state: State
    places: tuple[str, ...] = ()
    note: str = ""

    @property
    def missing(self) -> bool:
        """Whether it is known not to be done."""
        return self.state is State.MISSING


def checklist(directory: Path, *, diffusers: Path | None = None) -> list[Item]:
    """Go through the checklist for the model family in ``directory``.

    Raises:
        LintError: it is no directory, or nothing in it can be read as Python.
    """
    if not directory.is_dir():
        raise LintError(
            f"--checklist {directory}: expected the directory of a model family, such as "
            "src/diffusers/modular_pipelines/mymodel."
        )
    rules = [rule for rule in catalogue().rules if rule.code in _RULES]
    analysis = analyse([directory], rules, diffusers=diffusers)
    if not analysis.files:
        raise LintError(f"--checklist {directory}: there are no Python files in it.")
    family = _Family(directory, analysis)
    return [step(family) for step in _STEPS]


class _Family:
    """What the steps ask about."""

    def __init__(self, directory: Path, analysis: Analysis) -> None:
        self.directory = directory
        self.name = directory.resolve().name
        self.project: Project = analysis.project
        self._findings = analysis.findings
        self.problems = analysis.problems

    def findings(self, code: str) -> list[Finding]:
        return [finding for finding in self._findings if finding.code == code]

    def leaves(self, *stems: str) -> list[Block]:
        return [block for block in self.project.leaves if block.source.stem in stems]

    def assembled(self) -> list[Block]:
        return [
            block
            for block in self.project.blocks
            if block.source.stem.startswith("modular_blocks") and block.kind != "leaf"
        ]

    def file(self, name: str) -> str:
        return (self.directory / name).as_posix()


def _place(block: Block) -> str:
    return f"{block.source.path}:{block.info.node.lineno} {block.name}"


def _outcome(title: str, found: Iterable[Block], missing: str, where: str) -> Item:
    places = tuple(_place(block) for block in found)
    if places:
        return Item(title, State.DONE, places)
    return Item(title, State.MISSING, (where,), missing)


def _stages(family: _Family) -> Item:
    return Item(
        "stages of the original pipeline mapped",
        State.UNDECIDABLE,
        note="read its __call__ from start to end and name the blocks it falls into",
    )


def _reference(family: _Family) -> Item:
    return Item(
        "scripts that run the reference and the blocks from one seed",
        State.UNDECIDABLE,
        note="they live outside of the package",
    )


def _structure(family: _Family) -> Item:
    missing = [name for name in FILES if not (family.directory / name).is_file()]
    if not any(family.directory.glob("modular_blocks_*.py")):
        missing.append(f"modular_blocks_{family.name}.py")
    if missing:
        places = tuple(family.file(name) for name in missing)
        return Item("files of the family", State.MISSING, places, "not there yet")
    return Item("files of the family", State.DONE, (family.directory.as_posix(),))


def _decoder(family: _Family) -> Item:
    return _outcome(
        "decoder block",
        family.leaves("decoders"),
        "a block that takes latents and returns images or videos",
        family.file("decoders.py"),
    )


def _text_encoder(family: _Family) -> Item:
    found = [
        block
        for block in family.leaves("encoders")
        if "prompt_embeds" in block.outputs.names or "TextEncode" in block.name
    ]
    return _outcome(
        "text encoder block",
        found,
        "a block that takes a prompt and returns prompt_embeds",
        family.file("encoders.py"),
    )


def _image_encoder(family: _Family) -> Item:
    title = "image or video encoder block"
    found = [
        block
        for block in family.leaves("encoders")
        if any(name.endswith("latents") for name in block.outputs.names) or "vae" in block.components.names
    ]
    if found:
        return Item(title, State.DONE, tuple(map(_place, found)))
    return Item(title, State.UNDECIDABLE, note="none found; needed only if the model takes images or videos")


def _timesteps(family: _Family) -> Item:
    found = [
        block
        for block in family.leaves("before_denoise")
        if "timesteps" in block.outputs.names or "Timesteps" in block.name
    ]
    return _outcome(
        "block that sets the timesteps",
        found,
        "a block that returns timesteps",
        family.file("before_denoise.py"),
    )


def _latents(family: _Family) -> Item:
    found = [
        block for block in family.leaves("before_denoise") if any("latents" in name for name in block.outputs.names)
    ]
    return _outcome(
        "block that prepares latents and noise",
        found,
        "a block that returns latents",
        family.file("before_denoise.py"),
    )


def _denoise(family: _Family) -> Item:
    found = [
        block
        for block in family.project.blocks
        if block.source.stem == "denoise" and (block.kind == "loop" or "Denoise" in block.name)
    ]
    loops = [block for block in found if block.kind == "loop"]
    return _outcome(
        "denoising loop",
        loops or found,
        "a LoopSequentialPipelineBlocks over the timesteps",
        family.file("denoise.py"),
    )


def _guider(family: _Family) -> Item:
    title = "guidance left to a guider"
    by_hand = family.findings("MOD005")
    if by_hand:
        places = tuple(f"{finding.path}:{finding.line}" for finding in by_hand)
        return Item(title, State.MISSING, places, "guidance is computed here (MOD005)")
    found = [block for block in family.project.leaves if "guider" in block.components.names]
    if found:
        return Item(title, State.DONE, tuple(map(_place, found)))
    return Item(title, State.UNDECIDABLE, note="no guider; fine if all checkpoints are distilled for guidance")


def _pipeline(family: _Family) -> Item:
    title = "pipeline class with default_blocks_name"
    found = [info for info in family.project.pipelines if info.find("default_blocks_name") is not None]
    named = [info for info in found if _sets(info.node, "default_blocks_name")]
    if named:
        return Item(title, State.DONE, tuple(f"{info.source.path}:{info.node.lineno} {info.name}" for info in named))
    if family.project.pipelines:
        places = tuple(f"{info.source.path}:{info.node.lineno} {info.name}" for info in family.project.pipelines)
        return Item(title, State.MISSING, places, "the class does not set default_blocks_name")
    return Item(title, State.MISSING, (family.file("modular_pipeline.py"),), "a subclass of ModularPipeline")


def _sets(node: ast.ClassDef, name: str) -> bool:
    return any(
        isinstance(target, ast.Name) and target.id == name
        for statement in node.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
    )


def _assembly(family: _Family) -> Item:
    return _outcome(
        "blocks assembled",
        family.assembled(),
        "a Sequential, Auto or Conditional block that runs the others",
        family.file(f"modular_blocks_{family.name}.py"),
    )


def _lazy_imports(family: _Family) -> Item:
    title = "lazy imports and exports"
    own = next((source for source in family.project.sources if source.path == family.file("__init__.py")), None)
    if own is None or not any(
        isinstance(node, ast.Name | ast.Attribute) and "_LazyModule" in ast.unparse(node)
        for node in own.nodes(ast.Name, ast.Attribute)
    ):
        return Item(title, State.MISSING, (family.file("__init__.py"),), "it does not set up a _LazyModule")
    lacking = family.findings("MOD032")
    if lacking:
        places = tuple(f"{finding.path}:{finding.line}" for finding in lacking)
        return Item(title, State.MISSING, places, "; ".join(dict.fromkeys(finding.message for finding in lacking)))
    return Item(title, State.DONE, (own.path,))


def _auto_docstring(family: _Family) -> Item:
    title = "# auto_docstring above assembled blocks"
    if not family.assembled():
        return Item(title, State.MISSING, (), "no blocks are assembled yet")
    lacking = [finding for finding in family.findings("MOD022") if not _todo(finding)]
    if lacking:
        return Item(title, State.MISSING, tuple(f"{one.path}:{one.line}" for one in lacking), "the comment is missing")
    return Item(title, State.DONE, tuple(dict.fromkeys(block.source.path for block in family.assembled())))


def _docstrings(family: _Family) -> Item:
    title = "docstrings generated, with every parameter described"
    todo = [*family.findings("MOD022b"), *(finding for finding in family.findings("MOD022") if _todo(finding))]
    if todo:
        places = tuple(f"{finding.path}:{finding.line}" for finding in todo)
        return Item(title, State.MISSING, places, "a description still says TODO")
    bare = [block for block in family.assembled() if ast.get_docstring(block.info.node) is None]
    if bare or not family.assembled():
        return Item(title, State.MISSING, tuple(map(_place, bare)), "run utils/modular_auto_docstring.py of diffusers")
    return Item(title, State.DONE, tuple(dict.fromkeys(block.source.path for block in family.assembled())))


def _todo(finding: Finding) -> bool:
    return "todo" in finding.kind.lower() or "description" in finding.kind.lower()


def _style(family: _Family) -> Item:
    return Item("style and quality checks of diffusers pass", State.UNDECIDABLE, note="make style, make quality")


def _parity(family: _Family) -> Item:
    title = "every workflow compared with the reference"
    for parent in family.directory.resolve().parents:
        tests = parent / "tests" / "modular_pipelines" / family.name
        if tests.is_dir():
            return Item(title, State.UNDECIDABLE, (tests.as_posix(),), "tests are there; the comparison is yours")
    return Item(title, State.UNDECIDABLE, note="no tests were found beside the package")


_STEPS: tuple[Callable[[_Family], Item], ...] = (
    _stages,
    _reference,
    _structure,
    _decoder,
    _text_encoder,
    _image_encoder,
    _timesteps,
    _latents,
    _denoise,
    _guider,
    _pipeline,
    _assembly,
    _lazy_imports,
    _auto_docstring,
    _docstrings,
    _style,
    _parity,
)


def render_checklist(items: Sequence[Item], *, colour: bool = False, as_json: bool = False) -> str:
    """The items, one or a few lines each; or a JSON list of objects."""
    if as_json:
        return json.dumps([dataclasses.asdict(item) for item in items], indent=2) + "\n"
    lines = [line for item in items for line in _lines(item, colour)]
    counts = ", ".join(f"{sum(item.state is state for item in items)} {state}" for state in State)
    return "\n".join([*lines, "", f"{len(items)} items: {counts}."]) + "\n"


_STYLES = {State.DONE: "32", State.MISSING: "31", State.UNDECIDABLE: "33"}
_SHOWN = 3


def _lines(item: Item, colour: bool) -> Iterator[str]:
    state = f"{item.state:<7}"
    yield f"{f'{chr(27)}[{_STYLES[item.state]}m{state}{chr(27)}[0m' if colour else state}  {item.title}"
    if item.note:
        yield f"         {printable(item.note)}"
    for place in item.places[:_SHOWN]:
        yield f"         {printable(place)}"
    if len(item.places) > _SHOWN:
        yield f"         and {len(item.places) - _SHOWN} more"
