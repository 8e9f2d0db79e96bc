"""Rules about encoding and decoding: in blocks of their own, outside of the denoising loop."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.values import Spec
from ...project.blocks import Block
from ...project.body import Body
from ...project.project import Project, once
from ...reading.nodes import method_called, name_of, passed
from ...reading.source import Source
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions, is_encoder, users

__all__ = ["DecodeInDenoise", "PerPromptInEncoder", "PrecomputedEncoderInput", "VaeEncodeInPrepare"]

_ENCODED = re.compile(r"embed|latent|^pooled_|_mask$|hidden_states|_features?$|_embeddings?$")
_VAE = re.compile(
    r"(^|_)vae$|^vae_\d+$|(^|_)(autoencoder|movq|vqvae|vq_?gan|vq_?model|taesd|taew|tae|dcae|first_stage_model)(_\d+)?$"
)
_RAW = {"mask_image", "image_mask", "control_mask", "reference_mask"}


def encoded_name(name: str) -> bool:
    """Whether a name is typical of what an encoder makes."""
    return _ENCODED.search(name) is not None and name not in _RAW


class PrecomputedEncoderInput(Rule):
    """An encoder block optionally accepts what it is there to compute."""

    code = "MOD006"
    name = "precomputed-encoder-input"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.leaves:
            if not is_encoder(block.source, block.info) or not (block.components.specs or not block.components.whole):
                continue
            for spec in block.inputs.specs:
                name = spec.name
                if name is None or not encoded_name(name) or name not in block.outputs.names:
                    continue
                if self._optional(spec):
                    message = f"{block.name} computes `{name}` and also accepts it: pop the block out instead"
                    yield from report(self, spec.source, spec.call, message)

    def _optional(self, spec: Spec) -> bool:
        if spec.open and "required" not in spec.fields:
            return spec.template != "?"
        return not spec.constant("required", False) or spec.constant("default") is not None


def is_vae(project: Project, body: Body, node: ast.expr, owner: ClassInfo | None) -> bool:
    """Whether an expression is a VAE component."""
    for place in body.places(node):
        if place[0] == "components" and len(place) == 2 and is_vae_component(project, body.source, place[1]):
            return True
    return is_vae_name(name_of(node))


def is_vae_name(name: str) -> bool:
    """Whether a name is that of a VAE."""
    return _VAE.search(name) is not None


def is_vae_component(project: Project, source: Source, name: str) -> bool:
    """Whether the family declares a component of that name whose type is an autoencoder."""
    if is_vae_name(name):
        return True
    types = component_types(project, source.group)
    return any(hint.startswith(("Autoencoder", "VQ")) or "VAE" in hint for hint in types.get(name, ()))


@once
def component_types(project: Project, group: str) -> dict[str, set[str]]:
    """Short names of the types that a family declares for each component."""
    found: dict[str, set[str]] = {}
    for block in project.blocks_of(group):
        for spec in block.components.specs:
            found.setdefault(spec.name or "", set()).add(spec.type_name.rpartition(".")[2])
    return found


class VaeEncodeInPrepare(Rule):
    """A VAE encodes outside of an encoder block."""

    code = "MOD007"
    name = "vae-encode-in-prepare"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        wrappers = self._wrappers(project)
        for body in functions(project):
            if is_encoder(body.source, body.owner) or body.in_pipeline:
                continue
            if body.owner is None and not self._used_here(project, body):
                continue
            for node in body.of(ast.Call):
                what = self._encodes(project, body, node, wrappers)
                if what and not self._in_pixel_loop(project, body):
                    yield from report(self, body.source, node, f"{what} outside of an encoder block")

    def _encodes(self, project: Project, body: Body, node: ast.Call, wrappers: set[str]) -> str:
        function = node.func
        if isinstance(function, ast.Attribute):
            if function.attr in ("encode", "_encode", "tiled_encode", "encoder") and is_vae(
                project, body, function.value, body.owner
            ):
                return f"`{ast.unparse(function)}`"
            if function.attr == "encode" and _makes_latents(body, node):
                return f"`{ast.unparse(function)}`, which makes latents,"
            if function.attr in wrappers and ("components",) in body.places(function.value):
                return f"`{ast.unparse(function)}`, which encodes with the VAE,"
        elif isinstance(function, ast.Name):
            for place in body.names.get(function.id, ()):
                if place[0] == "components" and place[-1] == "encode" and len(place) == 3 and is_vae_name(place[1]):
                    return f"`{function.id}`, the VAE's `encode`,"
        return self._foreign_helper(project, body, node)

    def _foreign_helper(self, project: Project, body: Body, node: ast.Call) -> str:
        """A description of a helper in an encoder's file that encodes and is called from elsewhere, else ``""``."""
        found = project.function_named(body.source, node.func, body.function)
        if found is None or found[0] is body.source or found[0].stem not in ("encoders", "before_encoder"):
            return ""
        if not any(is_vae(project, body, argument, body.owner) for argument in passed(node)):
            return ""
        source, function = found
        for inner in source.below(function):
            if isinstance(inner, ast.Attribute) and inner.attr == "encode" and is_vae_name(name_of(inner.value)):
                return f"`{ast.unparse(node.func)}`, which encodes with the VAE,"
        return ""

    def _wrappers(self, project: Project) -> set[str]:
        """The names of pipeline methods that encode with the VAE."""
        found = set()
        for info in project.pipelines:
            for name, member in info.members.items():
                if not isinstance(member, ast.FunctionDef) or "encode" not in name:
                    continue
                for node in info.source.below(member):
                    if isinstance(node, ast.Attribute) and "encode" in node.attr:
                        found.add(name)
        return {name for name in found if "prompt" not in name and "text" not in name}

    def _used_here(self, project: Project, body: Body) -> bool:
        """Whether a helper is used by a block that is no encoder, or by no known block."""
        blocks = self._users(project, body)
        return not blocks or any(not is_encoder(block.source, block.info) for block in blocks)

    def _users(self, project: Project, body: Body) -> list[Block]:
        group = body.source.group
        return [block for block in users(project).get(body.function, ()) if block.source.group == group]

    def _in_pixel_loop(self, project: Project, body: Body) -> bool:
        blocks = [project.block(body.owner)] if body.owner is not None else self._users(project, body)
        return bool(blocks) and all(
            any(self._decodes(project, loop) for loop in project.loops_of(block)) for block in blocks
        )

    def _decodes(self, project: Project, loop: Block) -> bool:
        for _, instance in loop.sub_blocks[0]:
            for body in project.flow(instance.info).bodies:
                if any(method_called(node) == "decode" for node in body.of(ast.Call)):
                    return True
        return False


def _makes_latents(body: Body, node: ast.Call) -> bool:
    """Whether a component's ``encode`` is told to make latents by what is done with its result."""
    held = isinstance(node.func, ast.Attribute) and any(
        place[0] == "components" and len(place) == 2 for place in body.places(node.func.value)
    )
    parent = body.source.parent(node)
    if isinstance(parent, ast.Attribute):
        return held and parent.attr in ("latent_dist", "latents", "latent", "quantized")
    return held and isinstance(parent, ast.Call) and name_of(parent.func) == "retrieve_latents"


class PerPromptInEncoder(Rule):
    """An encoder block takes `num_images_per_prompt` or `num_videos_per_prompt`."""

    code = "MOD026"
    name = "per-prompt-in-encoder"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.leaves:
            if not is_encoder(block.source, block.info) or block.name.endswith(("InputStep", "InputsStep")):
                continue
            for spec in block.inputs.specs:
                if spec.name in ("num_images_per_prompt", "num_videos_per_prompt"):
                    message = f"{block.name} takes `{spec.name}`: its embeddings cannot be reused"
                    yield from report(self, spec.source, spec.call, message)


class DecodeInDenoise(Rule):
    """A block of `denoise.py` decodes latents with the VAE."""

    code = "MOD027"
    name = "decode-in-denoise"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for body in functions(project):
            if body.source.stem != "denoise" or (body.owner is not None and "Decode" in body.owner.name):
                continue
            if self._in_chunk_loop(project, body):
                continue
            for node in body.of(ast.Call):
                function = node.func
                if not isinstance(function, ast.Attribute) or function.attr != "decode":
                    continue
                if is_vae(project, body, function.value, body.owner):
                    yield from report(self, body.source, node, f"`{ast.unparse(function)}` in a denoising block")

    def _in_chunk_loop(self, project: Project, body: Body) -> bool:
        """Whether a block runs in a loop, or a helper in loops only."""
        if body.owner is not None:
            return bool(project.loops_of(project.block(body.owner)))
        blocks = users(project).get(body.function, ())
        return bool(blocks) and all(project.loops_of(block) for block in blocks)
