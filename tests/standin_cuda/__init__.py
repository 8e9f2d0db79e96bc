"""PyTorch's CUDA backend without a GPU. See README.md.

What is here asks the stand-in, in a process that runs with it.
"""

from __future__ import annotations

from .runtime import (
    forgive,
    is_loaded,
    misuse,
    pinned_bytes,
    refused_kernels,
    reset_stats,
    settings,
    stats,
    used_bytes,
)

__all__ = [
    "forgive",
    "is_loaded",
    "misuse",
    "pinned_bytes",
    "refused_kernels",
    "reset_stats",
    "settings",
    "stats",
    "used_bytes",
]
