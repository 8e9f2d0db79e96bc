"""The registry of model cases, by name."""

from __future__ import annotations

from . import autoencoders, denoisers, text_encoders, unets, video_autoencoders
from .case import ModelCase, weights_matter

MODELS: dict[str, ModelCase] = {
    case.name: case
    for module in (denoisers, unets, autoencoders, video_autoencoders, text_encoders)
    for case in module.CASES
}

__all__ = ["MODELS", "ModelCase", "weights_matter"]
