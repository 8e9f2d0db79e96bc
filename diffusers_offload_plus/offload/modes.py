"""What state the engine works in, whatever the caller's is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["engine_mode", "profiled"]


@contextlib.contextmanager
def engine_mode() -> Iterator[None]:
    """Weights are no inference tensors, and their movement is no part of any graph."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def profiled(verb: str, group: str) -> contextlib.AbstractContextManager[object]:
    """Shows a step of the engine to profilers; costs nothing while none is running."""
    if not torch.autograd._profiler_enabled():
        return contextlib.nullcontext()
    return torch.profiler.record_function(f"offload_plus::{verb} {group}")
