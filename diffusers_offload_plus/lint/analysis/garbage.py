"""Garbage collection switched off while syntax trees are built: their many objects all stay alive."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_garbage_collection"]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off for a while: its passes over syntax trees would take longer than parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                # Moves all new objects to the oldest generation, which the next small collections leave alone.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
