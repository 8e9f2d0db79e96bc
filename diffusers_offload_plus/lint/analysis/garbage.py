"""Runs without garbage collection, for work that creates hundreds of thousands of objects that all stay alive."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_garbage_collection"]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Look for no garbage meanwhile: going through syntax trees over and over takes longer than parsing them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                # Hands all that was created meanwhile to the oldest generation; otherwise the next small collection
                # would go through it.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
