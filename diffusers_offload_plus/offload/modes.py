"""Torch modes that the engine works in, whatever modes the caller has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["engine_mode", "profiled"]


_NOTHING = contextlib.nullcontext()


def engine_mode() -> contextlib.AbstractContextManager[None]:
    """A context without gradients and without inference mode.

    Tensors that are made in inference mode stay inference tensors for good, and autograd must not record that weights
    are moved.
    """
    if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return _NOTHING
    return _engine_mode()


@contextlib.contextmanager
def _engine_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def profiled(verb: str, group: str) -> contextlib.AbstractContextManager[object]:
    """A context that shows one step of the engine to a running profiler. Without one it costs nothing."""
    if not torch.autograd._profiler_enabled():
        return _NOTHING
    return torch.profiler.record_function(f"offload_plus::{verb} {group}")
