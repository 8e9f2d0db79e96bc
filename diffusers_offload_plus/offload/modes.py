"""What state the engine works in, whatever the caller's is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["engine_mode", "profiled"]


_NOTHING = contextlib.nullcontext()


def engine_mode() -> contextlib.AbstractContextManager[None]:
    """Weights are no inference tensors, and their movement is no part of any graph."""
    if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return _NOTHING
    return _engine_mode()


@contextlib.contextmanager
def _engine_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def profiled(verb: str, group: str) -> contextlib.AbstractContextManager[object]:
    """Shows a step of the engine to profilers; costs nothing while none is running."""
    if not torch.autograd._profiler_enabled():
        return _NOTHING
    return torch.profiler.record_function(f"offload_plus::{verb} {group}")
