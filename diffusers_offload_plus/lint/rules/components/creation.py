"""Rule MOD008: components are declared, not created in blocks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...evaluation.values import ClassValue
from ...project.project import Project
from ...reading.nodes import Dotted, Function, name_of
from ...reading.source import Source
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions

__all__ = ["InlineComponent"]

_LIBRARIES = (
    "diffusers.models.",
    "diffusers.schedulers.",
    "diffusers.guiders.",
    "diffusers.image_processor.",
    "diffusers.video_processor.",
    "diffusers.pipelines.",
    "transformers.",
)
# Functions that load a model, and classes of libraries whose instances are models.
_FACTORIES = re.compile(
    r"^(transformers\.pipeline|transformers\.pipelines\.pipeline|torch\.hub\.load\w*|torch\.jit\.load|torch\.package\.\w+"
    r"|timm\.create_model|clip\.load|whisper\.load_model|open_clip\.create_model\w*|onnxruntime\.InferenceSession"
    r"|openvino\.\w*compile_model|insightface\.app\.FaceAnalysis|insightface\.model_zoo\.get_model|rembg\.new_session"
    r"|ultralytics\.YOLO|sentence_transformers\.SentenceTransformer|easyocr\.Reader|llama_cpp\.Llama"
    r"|spandrel\.ModelLoader|torchvision\.models\.(?!\w*_Weights)\w+(\.\w+)*|tensorflow_hub\.load"
    r"|mediapipe\.solutions\.\w+\.\w+)$"
)
_DETECTORS = re.compile(
    r"(Detector|InferenceSession|Segmentor|Annotator|Upscaler|Enhancer|Estimator|Captioner|Reader)$"
)
_LOADERS = {"from_pretrained", "from_config", "from_single_file"}
_TRANSFORMS = ("torchvision.transforms.", "torchaudio.transforms.")
_VALUES = re.compile(
    r"(Output|Distribution|Config|Cache|Feature|Criteria|CriteriaList|Streamer|State|Mixin|Args|Kwargs|Exception|Error"
    r"|LogitsProcessor|LogitsProcessorList|Warper|AttnProcessor.*|RotaryPosEmbed.*|Condition|Registry)$"
)
_COMPONENTS = re.compile(
    r"(Model|Models|Scheduler|Processor|Guidance|Tokenizer|TokenizerFast|FeatureExtractor|Encoder|Decoder|Connectors?"
    r"|Projection|Vocoder|Checker|Upsampler|VAE|Enhancer|Head|Pachifier|Transformer(2D|3D)?|UNet.*)$"
    r"|^Auto[A-Z]|For[A-Z]\w+$|Autoencoder|Transformer[23]DModel|ControlNet"
)


class InlineComponent(Rule):
    """A block creates a component instead of declaring it."""

    code = "MOD008"
    name = "inline-component"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"transform": Level.INFO}

    def check(self, project: Project) -> Iterator[Finding]:
        declared = self._declared_types(project)
        for source in project.block_sources:
            infos = project.classes.of(source)
            if not any(info.is_block or info.is_pipeline for info in infos):
                continue
            for node in source.nodes(ast.Call):
                verdict = self._creates(project, source, node, declared)
                if verdict is not None and self._in_scope(project, source, node):
                    yield from self._finding(source, node, *verdict)
        for body in functions(project):
            if body.owner is None and not any(info.is_block for info in project.classes.of(body.source)):
                for node in body.of(ast.Call):
                    verdict = self._creates(project, body.source, node, declared)
                    if verdict is not None:
                        yield from self._finding(body.source, node, *verdict)

    def _finding(self, source: Source, node: ast.Call, kind: str, what: str) -> Iterator[Finding]:
        return report(self, source, node, f"creates {what}: declare it as a component", kind=kind)

    def _in_scope(self, project: Project, source: Source, node: ast.Call) -> bool:
        """Whether ``node`` is in a block, in a pipeline, beside blocks or at module level, but in no declaration."""
        for ancestor in source.ancestors(node):
            if isinstance(ancestor, ast.FunctionDef) and ancestor.name in _DECLARATIONS:
                return False
            if isinstance(ancestor, ast.ClassDef):
                info = project.classes.info(source, ancestor)
                return info.is_block or info.is_pipeline
            if isinstance(ancestor, ast.Call) and name_of(ancestor.func) in ("ComponentSpec", "ConfigSpec"):
                return False
        return True

    def _creates(
        self, project: Project, source: Source, node: ast.Call, declared: dict[str, set[str]]
    ) -> tuple[str, str] | None:
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in _LOADERS:
            base = function.value
            if isinstance(base, ast.Call) and name_of(base.func) == "super":
                return None
            info = project.classes.named(source, base, _function(project, source, node))
            if isinstance(info, ClassInfo) and (info.kind or info.is_pipeline):
                return None
            if isinstance(info, str) and info.endswith(("Config", "ModularPipeline", "Blocks")):
                return None
            return "", f"`{ast.unparse(base)}` with `{function.attr}`"
        if not isinstance(function, Dotted):
            return None
        short = name_of(function)
        dotted = project.dotted(source, function) or ""
        name = dotted.rpartition(".")[2] or short
        if _FACTORIES.match(dotted):
            return "", f"a model with `{name}`"
        if not name[:1].isupper() or name.isupper() or not dotted:
            return None
        if dotted.startswith(_TRANSFORMS):
            return "transform", f"the transform `{name}`"
        if dotted in declared.get(source.group, ()):
            return "", f"`{name}`, which is the type of a component,"
        if dotted.startswith(_LIBRARIES) or self._from_top(project, dotted):
            return ("", f"`{name}`") if self._is_component(project, dotted, name) else None
        made = project.classes.named(source, function, _function(project, source, node))
        if isinstance(made, ClassInfo):
            return ("", f"the model `{name}`") if _is_model(made) else None
        return ("", f"`{name}`") if made is not None and "." in dotted and _DETECTORS.search(name) else None

    def _from_top(self, project: Project, dotted: str) -> bool:
        return dotted.startswith("diffusers.") and dotted.count(".") == 1

    def _is_component(self, project: Project, dotted: str, name: str) -> bool:
        """Whether a class of a library is a component, by its base classes if these are read, else by its name."""
        if _VALUES.search(name):
            return False
        module = project.modules.module(dotted.rpartition(".")[0]) if dotted.startswith("diffusers.") else None
        symbol = project.modules.lookup(module, name) if module is not None else None
        if symbol is not None and isinstance(symbol.node, ast.ClassDef) and symbol.source is not None:
            info = project.classes.info(symbol.source, symbol.node)
            names = {
                entry.name if isinstance(entry, ClassInfo) else entry.rpartition(".")[2] for entry in info.lineage
            }
            if names & {"ModelMixin", "SchedulerMixin", "BaseGuidance", "ConfigMixin", "Module", "ProcessorMixin"}:
                return True
        return _COMPONENTS.search(name) is not None

    def _declared_types(self, project: Project) -> dict[str, set[str]]:
        """The types of declared components, by family."""
        found: dict[str, set[str]] = {}
        for block in project.blocks:
            names = found.setdefault(block.source.group, set())
            for spec in block.components.specs:
                if "." in spec.type_name or isinstance(spec.fields.get("type_hint"), ClassValue):
                    names.add(spec.type_name)
        return {group: names - {"torch.nn.Module", "builtins.object"} for group, names in found.items()}


_DECLARATIONS = {"expected_components", "loop_expected_components", "expected_configs", "loop_expected_configs"}


def _is_model(info: ClassInfo) -> bool:
    """Whether a class of the linted code is a neural network."""
    bases = {entry if isinstance(entry, str) else entry.name for entry in info.lineage}
    short = {base.rpartition(".")[2] for base in bases}
    return bool(short & {"ModelMixin", "PreTrainedModel"}) or bool(
        bases & {"torch.nn.Module", "torch.nn.modules.Module"}
    )


def _function(project: Project, source: Source, node: ast.AST) -> Function | None:
    scope = source.function_of(node)
    return scope if isinstance(scope, Function) else None
