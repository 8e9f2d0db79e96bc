"""Rule MOD044: a text encoder runs without a guider and without the model that denoises."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.values import Spec
from ...project.blocks import Block
from ...project.project import Project
from ..base.declared import is_guider
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import is_encoder

__all__ = ["EncoderComponents"]

_DENOISER = re.compile(r"^(transformer|unet|denoiser|dit)(_\d+)?$")


class EncoderComponents(Rule):
    """A text encoder declares a guider or the model that denoises."""

    code = "MOD044"
    name = "encoder-components"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.leaves:
            if not _encodes_text(block):
                continue
            for spec in block.own("expected_components"):
                what = "the guider" if is_guider(spec) else "the denoiser" if _denoises(spec) else ""
                if what and spec.source.linted:
                    message = f"{block.name} declares `{spec.name}`: a text encoder runs without {what}"
                    yield from report(self, spec.source, spec.call, message)


def _encodes_text(block: Block) -> bool:
    return is_encoder(block.source, block.info) and ("Text" in block.name or "Prompt" in block.name)


def _denoises(spec: Spec) -> bool:
    return spec.name is not None and _DENOISER.match(spec.name) is not None
