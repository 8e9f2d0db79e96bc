"""The steps of the conversion checklist: how far a model family is on its way to a modular pipeline."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from pathlib import Path

from ..analysis.analyse import Analysis, analyse
from ..core.errors import LintError
from ..core.finding import Finding
from ..project.blocks import Block
from ..project.project import Project
from ..rules.registry import catalogue
from .items import Item, State

__all__ = ["checklist"]

_FILES = ("__init__.py", "modular_pipeline.py", "encoders.py", "before_denoise.py", "denoise.py", "decoders.py")
_RULES = ("MOD005", "MOD022", "MOD022b", "MOD032")


def checklist(directory: Path, *, diffusers: Path | None = None) -> list[Item]:
    """Go through the checklist for the model family in ``directory``.

    Raises:
        LintError: ``directory`` is no directory, or holds no Python files.
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
    """A model family: its files, its blocks and the findings about them."""

    def __init__(self, directory: Path, analysis: Analysis) -> None:
        self.directory = directory
        self.name = directory.resolve().name
        self.project: Project = analysis.project
        self._findings = analysis.findings

    def findings(self, code: str) -> list[Finding]:
        return [finding for finding in self._findings if finding.code == code]

    def assembled(self) -> list[Block]:
        return [
            block
            for block in self.project.blocks
            if block.source.stem.startswith("modular_blocks") and block.kind != "leaf"
        ]

    def file(self, name: str) -> str:
        return (self.directory / name).as_posix()


_Step = Callable[[_Family], Item]


def _by_hand(title: str, note: str) -> _Step:
    """A step that only a person can judge."""
    return lambda family: Item(title, State.UNDECIDABLE, note=note)


def _leaf(title: str, stem: str, fits: Callable[[Block], bool], missing: str, optional: str = "") -> _Step:
    """A step done by a leaf block in the file ``stem``; ``optional`` is the note for a family without one."""

    def step(family: _Family) -> Item:
        found = [block for block in family.project.leaves if block.source.stem == stem and fits(block)]
        if optional and not found:
            return Item(title, State.UNDECIDABLE, note=optional)
        return _outcome(title, found, missing, family.file(f"{stem}.py"))

    return step


def _outcome(title: str, found: Iterable[Block], missing: str, *where: str) -> Item:
    places = _places(found)
    return Item(title, State.DONE, places) if places else Item(title, State.MISSING, where, missing)


def _places(found: Iterable[Block]) -> tuple[str, ...]:
    return tuple(f"{block.source.path}:{block.info.node.lineno} {block.name}" for block in found)


def _reported(title: str, findings: Iterable[Finding], note: str) -> Item | None:
    """An item that is missing at the places of ``findings``; ``None`` if there are no findings."""
    places = tuple(f"{finding.path}:{finding.line}" for finding in findings)
    return Item(title, State.MISSING, places, note) if places else None


def _structure(family: _Family) -> Item:
    missing = [name for name in _FILES if not (family.directory / name).is_file()]
    if not any(family.directory.glob("modular_blocks_*.py")):
        missing.append(f"modular_blocks_{family.name}.py")
    if missing:
        return Item("files of the family", State.MISSING, tuple(map(family.file, missing)), "not there yet")
    return Item("files of the family", State.DONE, (family.directory.as_posix(),))


def _denoise(family: _Family) -> Item:
    found = [
        block
        for block in family.project.blocks
        if block.source.stem == "denoise" and (block.info.loops or "Denoise" in block.name)
    ]
    loops = [block for block in found if block.info.loops]
    missing = "a LoopSequentialPipelineBlocks over the timesteps"
    return _outcome("denoising loop", loops or found, missing, family.file("denoise.py"))


def _guider(family: _Family) -> Item:
    title = "guidance left to a guider"
    by_hand = _reported(title, family.findings("MOD005"), "guidance is computed here (MOD005)")
    found = [block for block in family.project.leaves if "guider" in block.components.names]
    if by_hand is None and not found:
        return Item(title, State.UNDECIDABLE, note="no guider; fine if all checkpoints are distilled for guidance")
    return by_hand or Item(title, State.DONE, _places(found))


def _pipeline(family: _Family) -> Item:
    title = "pipeline class with default_blocks_name"
    infos = family.project.pipelines
    if not infos:
        return Item(title, State.MISSING, (family.file("modular_pipeline.py"),), "a subclass of ModularPipeline")
    named = [info for info in infos if _sets(info.node, "default_blocks_name")]
    places = tuple(f"{info.source.path}:{info.node.lineno} {info.name}" for info in named or infos)
    if named:
        return Item(title, State.DONE, places)
    return Item(title, State.MISSING, places, "the class does not set default_blocks_name")


def _sets(node: ast.ClassDef, name: str) -> bool:
    return any(
        isinstance(target, ast.Name) and target.id == name
        for statement in node.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
    )


def _assembly(family: _Family) -> Item:
    missing = "a Sequential, Auto or Conditional block that runs the others"
    where = family.file(f"modular_blocks_{family.name}.py")
    return _outcome("blocks assembled", family.assembled(), missing, where)


def _lazy_imports(family: _Family) -> Item:
    title = "lazy imports and exports"
    own = next((source for source in family.project.sources if source.path == family.file("__init__.py")), None)
    nodes = own.nodes(ast.Name, ast.Attribute) if own is not None else []
    if own is None or not any("_LazyModule" in ast.unparse(node) for node in nodes):
        return Item(title, State.MISSING, (family.file("__init__.py"),), "it does not set up a _LazyModule")
    lacking = family.findings("MOD032")
    note = "; ".join(dict.fromkeys(finding.message for finding in lacking))
    return _reported(title, lacking, note) or Item(title, State.DONE, (own.path,))


def _auto_docstring(family: _Family) -> Item:
    title = "# auto_docstring above assembled blocks"
    if not family.assembled():
        return Item(title, State.MISSING, (), "no blocks are assembled yet")
    return _reported(title, family.findings("MOD022"), "the comment is missing") or _assembled_in(title, family)


def _docstrings(family: _Family) -> Item:
    title = "docstrings generated, with every parameter described"
    todo = _reported(title, family.findings("MOD022b"), "a description still says TODO")
    bare = [block for block in family.assembled() if ast.get_docstring(block.info.node) is None]
    if todo is None and (bare or not family.assembled()):
        return Item(title, State.MISSING, _places(bare), "run utils/modular_auto_docstring.py of diffusers")
    return todo or _assembled_in(title, family)


def _assembled_in(title: str, family: _Family) -> Item:
    return Item(title, State.DONE, tuple(dict.fromkeys(block.source.path for block in family.assembled())))


def _parity(family: _Family) -> Item:
    title = "every workflow compared with the reference"
    for parent in family.directory.resolve().parents:
        tests = parent / "tests" / "modular_pipelines" / family.name
        if tests.is_dir():
            return Item(title, State.UNDECIDABLE, (tests.as_posix(),), "tests are there; the comparison is yours")
    return Item(title, State.UNDECIDABLE, note="no tests were found beside the package")


def _makes(name: str, *, called: str) -> Callable[[Block], bool]:
    """A test for blocks that have the output ``name``, or ``called`` in their own name."""
    return lambda block: name in block.outputs.names or called in block.name


def _makes_latents(block: Block) -> bool:
    return any("latents" in name for name in block.outputs.names)


def _encodes_images(block: Block) -> bool:
    return any(name.endswith("latents") for name in block.outputs.names) or "vae" in block.components.names


_STEPS: tuple[_Step, ...] = (
    _by_hand(
        "stages of the original pipeline mapped",
        "read its __call__ from start to end and name the blocks it falls into",
    ),
    _by_hand("scripts that run the reference and the blocks from one seed", "they live outside of the package"),
    _structure,
    _leaf("decoder block", "decoders", lambda block: True, "a block that takes latents and returns images or videos"),
    _leaf(
        "text encoder block",
        "encoders",
        _makes("prompt_embeds", called="TextEncode"),
        "a block that takes a prompt and returns prompt_embeds",
    ),
    _leaf(
        "image or video encoder block",
        "encoders",
        _encodes_images,
        "",
        optional="none found; needed only if the model takes images or videos",
    ),
    _leaf(
        "block that sets the timesteps",
        "before_denoise",
        _makes("timesteps", called="Timesteps"),
        "a block that returns timesteps",
    ),
    _leaf("block that prepares latents and noise", "before_denoise", _makes_latents, "a block that returns latents"),
    _denoise,
    _guider,
    _pipeline,
    _assembly,
    _lazy_imports,
    _auto_docstring,
    _docstrings,
    _by_hand("style and quality checks of diffusers pass", "make style, make quality"),
    _parity,
)
